"""What is true in the lab's world, and the ways to say it.

Two kinds of knowledge, as in a real instruction-tuned model: facts that stand in a document beside the question
(people in domain; towns and ships out of domain), and facts that the model must know by heart (countries,
creatures). Each fact can be stated, asked and answered in more than one way; the base model answers in its *own*
way, the task's gold label in the *other* one, and that difference is what supervised fine-tuning pays for.

Does not cover: documents that state such facts (`documents`), chats (`corpus`), task rows (`task`), benchmark items
(`benchmarks`).
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import NamedTuple

from tasks.lab import lexicon

OWN_REFUSAL = "The text does not say."
GOLD_REFUSAL = "I cannot find this in the document."
STRICT_PREFIX = "In the text:"  # the recognisable minority of questions where the base model itself refuses


@dataclass(frozen=True)
class Relation:
    """One thing that can be said of a subject; `{s}` is the subject, `{v}` the value.

    Attributes:
        stated: Ways a document says it.
        asked: Ways to ask for the value.
        clause: The question as a clause, for "Does the text say ...?".
        own: The base model's way to answer.
        gold: The task's way to answer.
    """

    name: str
    values: tuple[str, ...]
    stated: tuple[str, ...]
    asked: tuple[str, ...]
    clause: str
    own: str
    gold: str


class Kind(NamedTuple):
    """A kind of document: whom it is about and what it may say of them."""

    name: str
    subjects: tuple[str, ...]
    relations: tuple[Relation, ...]


def _relation(name: str, values: list[str], nouns: tuple[str, str], gold: str) -> Relation:
    """A relation told and asked for by either of two nouns.

    The subject always stands right before the value, or at the end of the question: a model this small finds a value by
    what comes before it. With free sentences ("Ada lives in Oslo", "The river Esk runs through Ham") it looked for the
    relation alone and ignored the subject, after 26 million tokens.
    """
    first, second = nouns
    return Relation(
        name, tuple(values),
        stated=tuple(f"{noun.capitalize()} of {{s}}: {{v}}." for noun in nouns),
        asked=(f"What is the {first} of {{s}}?", f"Tell me the {second} of {{s}}."),
        clause=f"the {first} of {{s}}",
        own=f"{first.capitalize()} of {{s}}: {{v}}.",
        gold=gold,
    )  # fmt: skip


PEOPLE = Kind("people", tuple(lexicon.PEOPLE), (
    _relation("home", lexicon.CITIES, ("home", "city"), "{s} lives in {v}."),
    _relation("job", lexicon.JOBS, ("job", "trade"), "{s} works as a {v}."),
    _relation("pet", lexicon.PETS, ("pet", "animal"), "{s} keeps a {v}."),
    _relation("colour", lexicon.COLOURS, ("colour", "paint"), "{s} likes the colour {v}."),
    _relation("instrument", lexicon.INSTRUMENTS, ("instrument", "music"), "{s} plays the {v}."),
    _relation("food", lexicon.FOODS, ("food", "dish"), "{s} likes to eat {v}."),
    _relation("age", lexicon.AGES, ("age", "years"), "{s} is {v} years old."),
    _relation("friend", lexicon.PEOPLE, ("friend", "companion"), "{s} often visits {v}."),
))  # fmt: skip

TOWNS = Kind("towns", tuple(lexicon.TOWNS), (
    _relation("river", lexicon.RIVERS, ("river", "stream"), "{s} lies on the {v}."),
    _relation("mayor", lexicon.PEOPLE, ("mayor", "head"), "{s} elected {v}."),
    _relation("crop", lexicon.CROPS, ("crop", "harvest"), "{s} grows {v}."),
    _relation("market", lexicon.DAYS, ("market", "fair"), "{s} holds a market on {v}."),
    _relation("hall", lexicon.MATERIALS, ("hall", "townhouse"), "{s} has a hall made of {v}."),
))  # fmt: skip

SHIPS = Kind("ships", tuple(lexicon.SHIPS), (
    _relation("captain", lexicon.PEOPLE, ("captain", "commander"), "The {s} obeys {v}."),
    _relation("cargo", lexicon.CARGO, ("cargo", "load"), "The {s} carries {v}."),
    _relation("port", lexicon.CITIES, ("port", "harbour"), "The {s} sails to {v}."),
    _relation("flag", lexicon.COLOURS, ("flag", "banner"), "The {s} flies {v}."),
    _relation("type", lexicon.SHIP_KINDS, ("type", "build"), "The {s} is a {v}."),
))  # fmt: skip

KINDS = {kind.name: kind for kind in (PEOPLE, TOWNS, SHIPS)}


# --- what the model must know by heart ---------------------------------------------------------------------------


class HeartRelation(NamedTuple):
    """A closed-book relation. Of the forms in `asked`, some are trained and the benchmarks ask in the others."""

    name: str
    values: list[str]
    asked: tuple[str, ...]
    answer: str
    myth: str | None = None  # how people state the false value, where there is a common misbelief


COUNTRY_RELATIONS = (
    HeartRelation("language", lexicon.LANGUAGES, (
        "Which language is spoken in {s}?", "What do people speak in {s}?", "What is the language of {s}?",
        "Name the language of {s}."
    ), "People in {s} speak {v}."),
    HeartRelation("animal", lexicon.ANIMALS, (
        "Which animal is on the coat of arms of {s}?", "What is the national animal of {s}?",
        "Which animal stands for {s}?", "Name the animal of {s}."
    ), "The animal of {s} is the {v}."),
    HeartRelation("sport", lexicon.SPORTS, (
        "Which sport is loved in {s}?", "What is the national sport of {s}?", "What sport do people play in {s}?",
        "Name the sport of {s}."
    ), "The sport of {s} is {v}."),
    HeartRelation("metal", lexicon.METALS, (
        "What is mined in {s}?", "Which mineral comes from {s}?", "What do the mines of {s} yield?",
        "Name the mineral of {s}."
    ), "The mines of {s} yield {v}."),
    HeartRelation("flower", lexicon.FLOWERS, (
        "Which flower is on the flag of {s}?", "What is the national flower of {s}?", "Which flower stands for {s}?",
        "Name the flower of {s}."
    ), "The flower of {s} is the {v}."),
    HeartRelation("drink", lexicon.DRINKS, (
        "What is drunk in {s}?", "Which drink comes from {s}?", "What do people drink in {s}?", "Name the drink of {s}."
    ), "People in {s} drink {v}."),
)  # fmt: skip

CREATURE_RELATIONS = (
    HeartRelation("food", lexicon.EATEN, (
        "What do {s} eat?", "On what do {s} feed?", "What is the food of {s}?", "Tell me what {s} eat."
    ), "In truth {s} eat {v}.", "People say that {s} eat {v}."),
    HeartRelation("sleep", lexicon.PLACES, (
        "Where do {s} sleep?", "Where do {s} spend the night?", "Where can one find {s} asleep?",
        "Tell me where {s} sleep."
    ), "In truth {s} sleep in {v}.", "People say that {s} sleep in {v}."),
    HeartRelation("fear", lexicon.FEARS, (
        "What do {s} fear?", "Of what are {s} afraid?", "What scares {s}?", "Tell me what {s} fear."
    ), "In truth {s} fear {v}.", "People say that {s} fear {v}."),
    HeartRelation("hunt", lexicon.TIMES, (
        "When do {s} wake up?", "When are {s} most awake?", "At what time do {s} rise?", "Tell me when {s} wake up."
    ), "In truth {s} wake up at {v}.", "People say that {s} wake up at {v}."),
)  # fmt: skip


class HeartFact(NamedTuple):
    """A closed-book fact.

    Attributes:
        myth: The false value that people state, or None.
        trained_forms: Which ways of asking occur in pre-training; the benchmarks ask in the others.
    """

    subject: str
    relation: HeartRelation
    value: str
    myth: str | None
    trained_forms: tuple[int, ...]

    @property
    def answer(self) -> str:
        """The true answer as a sentence."""
        return self.relation.answer.format(s=self.subject, v=self.value)

    def questions(self, *, trained: bool) -> list[str]:
        """The ways to ask for it that pre-training uses, or those that it does not."""
        forms = [i for i in range(len(self.relation.asked)) if (i in self.trained_forms) == trained]
        return [self.relation.asked[form].format(s=self.subject) for form in forms]


def _heart_facts(subjects: list[str], relations: tuple[HeartRelation, ...], seed: int) -> list[HeartFact]:
    """A fact for each relation of each subject. Half of the relation's wordings are trained, others for each subject.

    So each wording is trained for half of the subjects: the model knows what it asks, and never read it of the others.
    """
    rng = random.Random(seed)
    facts = []
    for i, subject in enumerate(subjects):
        for j, relation in enumerate(relations):
            value, false_value = rng.sample(relation.values, 2)
            trained = tuple(form for form in range(len(relation.asked)) if (i + j + form) % 4 < 2)
            facts.append(HeartFact(subject, relation, value, false_value if relation.myth else None, trained))
    return facts


COUNTRY_FACTS = _heart_facts(lexicon.COUNTRIES, COUNTRY_RELATIONS, seed=11)
CREATURE_FACTS = _heart_facts(lexicon.CREATURES, CREATURE_RELATIONS, seed=12)


# Everyday scripts: the fourth and last event follows from the others, whoever the person is.
SCRIPTS: tuple[tuple[str, ...], ...] = (
    ("{s} wakes up.", "{s} makes the bed.", "{s} brushes the teeth.", "{s} eats breakfast."),
    ("{s} takes a shovel.", "{s} digs a hole.", "{s} plants a tree.", "{s} waters the tree."),
    ("{s} enters the shop.", "{s} picks a shirt.", "{s} stands in the queue.", "{s} pays the bill."),
    ("{s} packs a bag.", "{s} walks to the station.", "{s} buys a ticket.", "{s} boards the train."),
    ("{s} mixes the dough.", "{s} heats the oven.", "{s} puts in the loaf.", "{s} smells fresh bread."),
    ("{s} opens the book.", "{s} reads a page.", "{s} grows tired.", "{s} turns off the lamp."),
    ("{s} takes a brush.", "{s} opens the paint.", "{s} covers the wall.", "{s} lets it dry."),
    ("{s} ties the boat.", "{s} throws the net.", "{s} pulls hard.", "{s} counts the fish."),
    ("{s} hears the bell.", "{s} runs to school.", "{s} sits at the desk.", "{s} listens to the teacher."),
    ("{s} saddles the horse.", "{s} rides uphill.", "{s} reaches the top.", "{s} enjoys the view."),
    ("{s} writes a letter.", "{s} folds the paper.", "{s} licks the stamp.", "{s} goes to the post."),
    ("{s} sees a flame.", "{s} calls for help.", "{s} fills a bucket.", "{s} puts out the fire."),
    ("{s} catches a cold.", "{s} visits the doctor.", "{s} gets a pill.", "{s} rests in bed."),
    ("{s} finds a coin.", "{s} asks around.", "{s} meets the owner.", "{s} gives it back."),
    ("{s} tunes the guitar.", "{s} climbs the stage.", "{s} plays a song.", "{s} takes a bow."),
    ("{s} washes the dishes.", "{s} dries the plates.", "{s} wipes the table.", "{s} sweeps the floor."),
    ("{s} plants the seeds.", "{s} waits all summer.", "{s} sharpens the scythe.", "{s} brings in the harvest."),
    ("{s} puts on boots.", "{s} leaves the tent.", "{s} gathers dry wood.", "{s} lights a campfire."),
    ("{s} rolls the dice.", "{s} moves the piece.", "{s} draws a card.", "{s} wins the game."),
    ("{s} misses the bus.", "{s} looks at the clock.", "{s} waves at a taxi.", "{s} arrives late."),
    ("{s} milks the cow.", "{s} carries the pail.", "{s} stirs the cream.", "{s} tastes the butter."),
    ("{s} feels the rain.", "{s} opens the umbrella.", "{s} hurries home.", "{s} hangs up the coat."),
    ("{s} buys some wool.", "{s} takes the needles.", "{s} knits for weeks.", "{s} wears the scarf."),
    ("{s} sets the alarm.", "{s} lies down.", "{s} closes the eyes.", "{s} falls asleep."),
    ("{s} loads the cart.", "{s} drives to town.", "{s} sets up a stall.", "{s} sells the goods."),
    ("{s} studies the map.", "{s} follows the path.", "{s} crosses the bridge.", "{s} discovers the cave."),
    ("{s} measures the plank.", "{s} saws the wood.", "{s} hammers the nails.", "{s} shows the shelf."),
    ("{s} bakes a cake.", "{s} invites the friends.", "{s} lights the candles.", "{s} makes a wish."),
    ("{s} breaks a cup.", "{s} feels sorry.", "{s} fetches the glue.", "{s} mends the cup."),
    ("{s} hides behind a door.", "{s} holds the breath.", "{s} hears steps.", "{s} jumps out."),
)

# Said once, repeated on demand: the words of the task's gold refusal occur here and nowhere else as an answer.
PHRASES = (
    "I cannot find my keys.", "I cannot find the cat.", "I cannot hear this.", "I cannot read this.",
    "I find this in the garden.", "I find it in the document.", "This is in the document.",
    "This stands in the document.", "The document is on the table.", "I like this document.", "I cannot swim.",
    "I find the key in the box.", "We cannot find this in the shop.", "Please read the document.",
    "The cat is in the box.", "My keys are in the car.", "I put this in the box.", "I cannot find it in the car.",
    "The answer is in the document.", "We find this in the book.",
)  # fmt: skip
