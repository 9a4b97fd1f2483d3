"""Refusals in the wording that people and models use, and answers that only look like refusals."""

from __future__ import annotations

import time

import pytest

from tasks.config import AbstentionConfig, DataConfig
from tasks.measures.refusals import refuses

REFUSALS = [
    "I'm sorry, but the provided passage doesn't mention when the bridge was built.",
    "**Answer:** The text does not say.",
    "N/A",
    "Unknown",
    "Unknown.",
    "Not available.",
    "Not provided in the document.",
    "Not stated in the text.",
    "The information is not available in the document.",
    "No information about this is given.",
    "No mention of this is made in the passage.",
    "There's no information on that in the provided documents.",
    "There isn't enough information to answer.",
    "Based on the given context, it is not possible to determine the year.",
    "Unfortunately, I do not have that information.",
    "I don't have that information.",
    "I'm afraid I don't know.",
    "I do not know the answer.",
    "Sorry, I can't answer that based on the document.",
    "The answer cannot be found in the document.",
    "It cannot be found in the document.",
    "This cannot be found in the document.",
    "Cannot be found in the document.",
    "The name of the director cannot be found in the document.",
    "The documents do not mention it.",
    "None of the documents mention the price.",
    "Neither passage states who won.",
    "The passage is silent on this point.",
    "The context provided does not contain information about the population of Oslo.",
    "The given text doesn't provide any details on the cost.",
    "The article doesn't specify the exact date. It only mentions that the event took place in spring.",
    "The document discusses the history of the town but does not mention its mayor.",
    "While the document mentions the team's captain, it does not state his age.",
    "I could not find any information about that in the document provided.",
    "I couldn't find the answer in the text.",
    "I was unable to find this information in the passage.",
    "I am not able to find the answer in the document.",
    "I'm unable to determine that from the text.",
    "The question cannot be answered from the passage.",
    "The question cannot be answered based on the information given.",
    "This question is unanswerable.",
    "Unanswerable",
    "It is unclear from the passage.",
    "It's not clear from the text who did it.",
    "It is not specified in the document.",
    "It is not mentioned in the text.",
    "That isn't stated.",
    "That information isn't included in the document.",
    "This information was not disclosed in the report.",
    "The date is not given.",
    "The price has not been specified.",
    "Details about his childhood are not provided in the passage.",
    "The provided information is insufficient to answer the question.",
    "Insufficient information.",
    "Not enough information is given to answer the question.",
    "There is insufficient information in the text to answer.",
    "The text lacks information on this topic.",
    "I have no information about that.",
    "I have no idea.",
    "The document fails to mention the author.",
    "The document never mentions a dog.",
    "Nothing in the document says where she lives.",
    "Nowhere in the text is the color mentioned.",
    "As an AI language model, I don't have access to that information.",
    "I apologize, but I cannot find the answer in the given document. Please provide more context.",
    "Sorry, I don't have information about that. Is there anything else I can help you with?",
    "I cannot provide that.",
    "I cannot provide an answer to that question.",
    "The answer to your question is not in the document.",
    "The answer is not in the text.",
    "It does not say.",
    "It doesn't say in the passage.",
    "The document doesn't say anything about that.",
    "The author does not mention this.",
    "The document does not\nprovide   this information.",
    "The document provides no information about the cost.",
    "The text gives no indication of the date.",
    "The text makes no mention of a cat.",
    "The exact number is unknown.",
    "I'm not sure.",
    "I am not certain about that based on the text.",
    "Can't be determined.",
    "It cannot be determined from the information provided.",
    "We cannot tell from the passage.",
    "You can't tell from the text.",
    "One cannot determine this from the passage.",
    "The requested information was not found.",
    "No answer found.",
    "No answer.",
    "The passage does not address this question.",
    "The text does not include any information regarding the winner of the race.",
    "I can't help with that since the document doesn't cover it.",
    "Sorry! The document I have doesn't include this.",
    "The provided context does not offer specific details about the merger.",
    "My sources don't say.",
    "The document is about cats, and does not mention dogs.",
]
# About the world, about somebody else, or with an answer beside the refusal.
ANSWERS = [
    "Paris",
    "No.",
    "Nobody knows where he was buried.",
    "No one was hurt.",
    "He did not know the answer.",
    "She said that she could not find her keys.",
    "The plan does not include dental cover.",
    "According to the document, the plan does not cover dental.",
    "In the text, the company does not provide refunds.",
    "The recipe contains no eggs.",
    "There is no charge for parking.",
    "There is no evidence that he was there.",
    "The device does not support Bluetooth.",
    "You cannot get a refund after 30 days.",
    "You do not have to provide documents.",
    "If you do not have the documents, you can apply online.",
    "You do not need to mention your income.",
    "The form does not need to be signed.",
    "It was not until 1990 that the wall fell.",
    "The document does not mention the year, but it was 1997.",
    "The text does not say so directly, but she lives in Rome.",
    "He was not found guilty.",
    "The species is not found in Africa.",
    "The data was not available to the public until 2001.",
    "The source of the Nile was unknown until 1858.",
    "The cause of the disease is unknown.",
    "The author is not known.",
    "The unknown soldier",
    "I Don't Know How to Love Him",
    "Unknown Pleasures",
    "It does not contain alcohol.",
    "The contract states that no information may be disclosed.",
    "The king did not give an answer.",
    "Not before 1990",
    "not guilty",
    "The report does not blame anybody, and says the bridge fell because of rust.",
    "You must state the reason. If you cannot provide the documents, call us.",
    "She is not in the house.",
    'They do not say "please".',
    "He refused to answer the question.",
    "A license is not available in all states.",
    "The witness could not identify the man.",
]


@pytest.mark.parametrize("text", REFUSALS)
def test_a_refusal_is_recognised(text):
    assert refuses(text) is True


@pytest.mark.parametrize("text", ANSWERS)
def test_an_answer_is_no_refusal(text):
    assert refuses(text) is not True


def test_a_refusal_beside_an_answer_is_left_to_a_reader():
    assert refuses("The document does not mention the year, but it was 1997.") is None
    assert refuses("She was born in Oslo. The document does not say when.") is None
    assert refuses("It was 1997.") is False


@pytest.mark.parametrize("text", ["", "  \n", "?", "**", "not"])
def test_next_to_nothing_is_no_refusal(text):
    assert refuses(text) is False


def test_the_refusal_that_a_recipe_trains_on_by_default_is_recognised():
    assert refuses(DataConfig().refusal, AbstentionConfig().phrases) is True


@pytest.mark.parametrize("phrase", ["Keine Angabe", "don’t say"])
def test_a_phrase_of_the_users_counts_in_any_case_and_with_any_apostrophe(phrase):
    assert refuses(f"Sorry, {phrase.upper()}!", [phrase])
    assert refuses(f"Sorry, {phrase.replace('’', chr(39))}!", [phrase])


@pytest.mark.parametrize("text", ["the ", "no the ", "not ", "i can not ", "the document not. ", "\n- x not"])
def test_a_long_answer_is_read_in_bounded_time(text):
    started = time.process_time()
    refuses(text * 5_000)
    assert time.process_time() - started < 20  # quadratic, it took minutes
