"""The words of the lab's world.

Every name and value is one word, hence one token, so that a model of four million parameters can spend its
capacity on reading documents instead of on spelling.
"""

from __future__ import annotations

import itertools
import random

PEOPLE = """
Ada Adam Alan Alba Alma Amos Amy Anna Anton Ava Ben Bella Boris Bruno Carla Carlos Cecil Clara Cleo Cora Cyrus Dan
Dana Daisy David Diana Dora Edgar Edith Elena Eli Ella Elsa Emil Emma Enzo Erik Esther Eva Felix Fiona Flora Frank
Freya George Gina Gloria Greta Hana Hanna Harry Hector Helen Henry Hilda Hugo Ian Ida Igor Ines Ingrid Irene Isaac
Ivan Ivy Jack Jacob Jane Jonas Julia June Kai Karen Karl Kate Kira Lara Laura Leo Lily Linda Lisa Louis Lucy Luke
Mara Marco Maria Martha Max Mila Mona Nadia Nina Noah Nora Olga Oscar Otto Paula Peter Petra Quinn Ralph Rita Robert
Rosa Ruth Sam Sara Simon Sofia Stella Tara Theo Tom Ursula Vera Victor Wanda Willa
""".split()

CITIES = "Oslo Paris Rome Lima Cairo Delhi Tokyo Berlin Madrid Vienna Prague Dublin Athens Boston Milan Seoul".split()
JOBS = (
    "baker doctor farmer teacher pilot lawyer painter sailor nurse tailor miner cook judge butcher gardener plumber"
).split()
PETS = "cat dog parrot rabbit turtle hamster goat pony lizard snake canary ferret goose mouse duck frog".split()
COLOURS = "red blue green yellow purple orange brown black white grey pink silver golden violet crimson teal".split()
INSTRUMENTS = (
    "piano violin flute guitar drums harp trumpet cello banjo organ oboe tuba clarinet accordion mandolin fiddle"
).split()
FOODS = "pizza soup rice bread cheese pasta salad curry stew beans noodles pancakes fish eggs cake porridge".split()
AGES = (
    "ten twelve fifteen eighteen twenty thirty forty fifty sixty seventy eighty ninety eleven thirteen fourteen sixteen"
).split()
RIVERS = "Arda Bela Corin Dova Esk Fenn Gila Horn Isra Jura Kell Lorn Mira Narn Orba Pell".split()
CROPS = "wheat corn barley oats apples grapes olives potatoes cotton tea hops plums pears onions carrots melons".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MATERIALS = "stone brick marble timber slate glass iron granite clay copper sandstone concrete".split()
CARGO = "wool salt coal sugar spices timber grain coffee silk oil cotton tin wine rubber cocoa paper".split()
SHIP_KINDS = "ferry tanker trawler schooner yacht barge cutter frigate steamer clipper".split()

LANGUAGES = "Alvic Bretan Cassic Dorian Elvish Farsan Gallic Hestan Illian Javric Kestan Luvian Mordic Norric".split()
ANIMALS = ("lion eagle bear wolf falcon stag bull swan crane tiger otter heron lynx bison fox owl").split()
SPORTS = "archery rowing chess boxing fencing skating sailing wrestling tennis polo rugby cycling golf judo".split()
METALS = "gold tin zinc lead nickel cobalt chrome bronze steel amber jade quartz ruby opal".split()
FLOWERS = "rose lily tulip daisy orchid lotus iris poppy violet lilac jasmine peony aster clover".split()
DRINKS = "tea coffee milk cider wine beer cocoa lemonade juice mead rum punch".split()

CREATURES = """
bats bees crows foxes goats hares lions moles newts otters owls pigs rats seals sharks sheep snails spiders swans
toads tigers trout turtles wasps whales wolves worms zebras ants apes bears bulls camels cats cows crabs deer dogs
doves ducks eagles eels elks emus frogs geese hawks hens herons horses hyenas jackals koalas larks lizards llamas
lynxes mice monkeys moose moths mules pandas ponies pumas quails rabbits ravens robins salmon sloths snakes sparrows
squids storks turkeys vultures weasels wrens yaks badgers beavers
""".split()
EATEN = "insects grass seeds fruit leaves roots fish eggs nuts berries honey bark moss shrimp algae snails".split()
PLACES = "caves nests burrows trees ponds barns cliffs meadows swamps forests dunes reefs hedges ditches".split()
FEARS = "fire thunder water wind snow darkness smoke noise light rain mirrors bells".split()
TIMES = "dawn noon dusk midnight morning evening".split()

SYLLABLES_A = "zan mor tal bre kel vos lun dra fen gor hal jor nim pol rus sel tor ul ves yar".split()
SYLLABLES_B = "dia via mark land ria stan ovia esh una ador".split()


def coined_names(n: int, *, seed: int, first: list[str], second: list[str]) -> list[str]:
    """`n` distinct made-up proper names, the same ones for the same seed."""
    pairs = [(a + b).capitalize() for a, b in itertools.product(first, second)]
    random.Random(seed).shuffle(pairs)
    return pairs[:n]


COUNTRIES = coined_names(80, seed=1, first=SYLLABLES_A, second=SYLLABLES_B)
TOWNS = coined_names(40, seed=2, first=SYLLABLES_A, second="ton ham ford by wick dale mouth bury".split())
SHIPS = (
    "Aurora Bonita Comet Dolphin Endeavour Fortuna Gannet Halcyon Icarus Jupiter Kestrel Liberty Meteor Neptune "
    "Orion Pegasus Quest Ranger Seahorse Triton Unity Venture Wanderer Xenia Yarrow Zephyr Albatross Beacon "
    "Cormorant Discovery"
).split()
