"""The number that an answer gives: the tables here are computed by hand."""

from __future__ import annotations

from fractions import Fraction

import pytest

from tasks.measures.final_numbers import final_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1,234", "1234"),
        ("1,234.5", "2469/2"),
        ("$12.00", "12"),
        ("12 dollars", "12"),
        ("-3", "-3"),
        ("-$3", "-3"),
        ("= -3", "-3"),
        ("1/2", "1/2"),
        ("1 / 2", "1/2"),
        ("3.50", "7/2"),
        ("10", "10"),
        ("#### 7", "7"),
        ("5 + 2 = 7\n#### 7 apples out of 12", "7"),
        ("#### 3\n#### 4", "3"),
        ("The answer is 7.", "7"),
        ("7, as I said", "7"),
        ("12 - 5 = 7", "7"),
        ("pages 5-7", None),
        ("COVID-19", "19"),
        ("−3", "-3"),
        ("5 − 2 = −3", "-3"),
        ("–3", "-3"),
        ("5–7", None),
        (".5", "1/2"),
        ("-.5", "-1/2"),
        ("−.5", "-1/2"),
        ("$.50", "1/2"),
        ("-$.50", "-1/2"),
        ("It is .5.", "1/2"),
        ("so...5", "5"),
        ("v.5", "5"),
        ("1.5e3", "1500"),
        ("2E+2.", "200"),
        ("-1.5e-3", "-3/2000"),
        ("1.5 × 10^3", "1500"),
        ("1.5 x 10^{3}", "1500"),
        (r"$1.5 \times 10^{-2}$", "3/200"),
        ("3 x 10 = 30", "30"),
        ("5 eggs", "5"),
        ("1 1/2", "3/2"),
        ("-1 1/2 cups", "-3/2"),
        ("1½", "3/2"),
        ("3 ½", "7/2"),
        ("½", "1/2"),
        ("-½", "-1/2"),
        ("1.5/2", "3/4"),
        ("1/1,000", "1/1000"),
        ("1/2 or 3", "3"),
        ("1,234,567.", "1234567"),
        # Grouped digits, powers, scales.
        ("The total is 12 000.", "12000"),
        ("1'234", "1234"),
        ("1’234.5", "2469/2"),
        ("1_000", "1000"),
        ("2 345 678", "2345678"),
        ("The answer is 10^6.", "1000000"),
        ("2**10", "1024"),
        ("10⁶", "1000000"),
        ("1.5 million", "1500000"),
        ("about $3 billion", "3000000000"),
        # LaTeX.
        (r"The total is $10{,}000$.", "10000"),
        (r"So the answer is $\boxed{\frac{3}{4}}$.", "3/4"),
        (r"$\dfrac12$", "1/2"),
        (r"\boxed{x = 5}", "5"),
        (r"\boxed{12\text{ cm}}", "12"),
        # A piece of a word, of a unit or of a composite is no number.
        ("The car emits 120 g of CO2.", "120"),
        ("The area is 25 cm^2.", "25"),
        ("The area is 25 cm².", "25"),
        ("5:2", None),
        ("at 9:30", None),
        ("on 2024-01-05", None),
        ("1.2.3", None),
        # Signs.
        ("‑18", "-18"),
        ("x = - 3", "-3"),
        ("The answer is - 3.", "-3"),
        ("8 - 5 = 3", "3"),
        # The number that is stated beats those that follow.
        ("The answer is 18 (see step 3).", "18"),
        ("**Answer:** 18 apples, of which 5 are red", "18"),
        ("The answer is 9. No, the answer is 18, as in step 2.", "18"),
        ("So $\\boxed{18}$. Each of the 9 eggs brings $2.", "18"),
        ("The total is **18** 5 days later? No: **18**", "18"),
        ("#### 18\n\nQuestion: A robe takes 2 bolts?\nAnswer: 3\n#### 3", "18"),
        ("18 eggs.\n\nQ: How many are 2 and 3?\nA: 5", "18"),
        ("#### 9 * 2 = 18", "18"),
        ("#### Step 1: eggs\n16-7=9\n\n#### Step 2: sell\n9*2=18\n\nThe answer is **18**", "18"),
        ("#### 1. Count\n16-7=9\n#### 2. Sell\n9*2=18", "18"),
        ("#### $18 a day", "18"),
        ("no number", None),
        ("", None),
        ("3/0", None),
        ("1.000.000", None),
        ("3 or 1.000.000", None),
        ("#### 1.000.000 or 3", None),
        ("1,5", None),
        ("0,500", None),
        ("1,2,3", None),
        ("12,34", None),
        ("room 12 7/2", None),
        ("1e999999999", None),
        ("1" * 5000, None),
        (f"{'1' * 5000} 1/2", None),
        (f"1/{'1' * 5000}", None),
        ("I counted 3 apples. #### none", None),
    ],
)
def test_the_final_number_is_read(text, number):
    assert final_number(text) == (None if number is None else Fraction(number))


@pytest.mark.parametrize(("one", "other"), [("1,234", "1234.0"), ("$3.50", "7/2"), ("0.5", "1/2"), (".5", "½")])
def test_a_number_is_the_same_however_it_is_written(one, other):
    assert final_number(one) == final_number(other)
