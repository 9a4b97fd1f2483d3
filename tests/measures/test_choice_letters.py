"""The letter of a choice, in gold labels and in answers."""

from __future__ import annotations

import pytest

from tasks.measures.choice_letters import choice_letter


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("(B)", "B"),
        ("B) Paris", "B"),
        ("The answer is (C).", "C"),
        ("First I thought B, but it is D.", "D"),
        ("A", "A"),
        ("A, as I said", "A"),
        ("I choose (A)", "A"),
        ("A bird has wings, so B.", "B"),
        ("I'm sure of C", "C"),
        ("The answer is B. A, C and D are wrong.", "B"),
        ("Not B. The answer is A.", "A"),
        ("The correct option is A, not B.", "A"),
        ("C11H12O has 11 carbons.\n\nANSWER: A", "A"),
        ("**Answer: C**", "C"),
        (r"so $\boxed{\text{C}}$, since A is small", "C"),
        ("**B. Paris**", "B"),
        ("The best choice is A because it is far.", "A"),
        ("A. Paris is small.\nB. Rome is large.\nOption B is correct.", "B"),
        ("C. Vitamin D", "C"),
        ("A. Only I is true.", "A"),
        ("B Both the parent(s) and the child", "B"),
        ("d) none", "D"),
        ("The answer is b.", "B"),
        ("a", "A"),
        ("It must be B.", "B"),
        ("The answer is a dog.", None),
        ("Vitamin D", None),
        ("Hepatitis B", None),
        ("John F. Kennedy", None),
        ("Both A and B", None),
        ("The answer is not B.", None),
        ("Paris", None),
        ("NATO", None),
        ("b", "B"),
        ("", None),
    ],
)
def test_the_chosen_letter_is_read(text, letter):
    assert choice_letter(text) == letter
