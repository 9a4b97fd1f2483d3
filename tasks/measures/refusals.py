"""Whether an answer is a refusal: it says that the document, or its speaker, does not have what was asked for.

"The document does not mention her age." is a refusal. "The recipe does not contain eggs." says something of the world.
"The document does not give the year, but it was 1997." goes on to answer. So an answer is read clause by clause, and
what decides is whom a clause speaks of: the document, the speaker, or the information that was asked for.

English wording; a recipe adds phrases in any language. Not covered: refusals for reasons of safety.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence


def _any(words: str, *, inflected: bool = False) -> str:
    """One of these words; with `inflected`, a verb's s counts, too."""
    return f"(?:{'|'.join(words.split())}){'(?:e?s)?' if inflected else ''}"


# Verbs of what a text does, and of what is done in it. The second list is said of nothing but a text.
_TELL = _any(
    "mention say state specify provide contain include give indicate discuss address describe explain reveal disclose "
    "list cover offer answer clarify detail identify name tell elaborate define refer have hold show suggest note "
    "report talk speak present supply establish confirm touch record allow support make go appear seem relate pertain "
    "match", inflected=True,
)  # fmt: skip
_OF_TEXTS = (
    "mentioned stated specified disclosed discussed indicated addressed clarified detailed referenced elaborated "
    "answerable described explained covered"
)
_TOLD_OF_TEXTS = _any(_OF_TEXTS)
_TOLD = _any(
    f"{_OF_TEXTS} said provided contained included given revealed listed offered answered identified named "
    "told defined found available present known determined clear recorded reported noted supplied shown supported "
    "inferred deduced ascertained established verified confirmed derived located obtained concluded evident "
    "documented presented there here in"
)
# What was asked for, as people call it; and what one who does not know cannot do.
_INFORMATION = _any(
    "informations? info answers? details? data mentions? indications? references? context discussions? descriptions? "
    "explanations? specifics? facts? knowledge clues? idea"
)
_KNOWING = (
    "find answer determine tell say know aware sure certain confirm verify locate identify infer deduce ascertain "
    "respond familiar establish discern conclude speculate extract derive"
)
_GIVING = "provide give offer have get obtain see share supply gather"
_KNOW, _GIVE, _KNOW_OR_GIVE = _any(_KNOWING), _any(_GIVING), _any(f"{_KNOWING} {_GIVING}")
# A noun for what the answer was to be taken from, with the words before and behind it.
_DOCUMENT = (
    r"(?:(?:the|this|that|these|those|any|your|its|our|my|either|both|all|none|of) )*(?:[\w'-]+ ){0,3}?"
    + _any(
        "documents? passages? texts? contexts? articles? sources? excerpts? paragraphs? snippets? extracts? materials? "
        "contents? conversation dialogue transcript description summary abstract webpage pages? results? references? "
        "evidence information details data dataset knowledge records? reports? faqs? chunks? input prompt files? author"
    )
    + r"(?: (?:provided|given|above|available|supplied|here|itself|themselves|alone"
    r"|(?:that )?(?:i|you|we|was|were) (?:have |has |been )*(?:provided|gave|given|shared|supplied|have)))*"
)
_ASKED = (
    r"(?:it|this|that|these|those|they|(?:(?:the|that|this|an?|such|her|his|its|their|any|your|specific|exact) )*"
    r"(?:[\w'-]+ ){0,3}?"
    + _any(
        "informations? info answers? details? data questions? query names? dates? year number reasons? identity age "
        "amount location time figures? mention specifics price"
    )
    + r"(?: (?!not\b)[\w',-]+){0,12}?)"
)
_START = r"^(?:\w+ly |sorry |and |so |therefore |thus |since |as |because |that |while )*"
_INSIDE = r"(?:in|from|by|within|on|with|using|throughout)"
_BEHIND = (
    r"(?: (?:in|from|by|within|on|with|at|for|about|here|there|using|based|anywhere|either|explicitly|directly|yet|so"
    r"|and|or|as)\b.*)?"
)
_IS = r"(?:is|are|was|were|has|have|can|could|does|do|did|will|would)"

_REFUSES = [
    re.compile(pattern)
    for pattern in (
        # The document does not tell. Behind a preposition it is no subject: "in the text, the plan does not ...".
        rf"(?<!in )(?<!to )(?<!of )(?<!on )(?<!by )(?<!from )(?<!within )\b{_DOCUMENT},?(?: (?!not\b)[\w'-]+){{0,8}}?,?"
        rf" (?:not|never|fails? to|neither)(?: [\w'-]+){{0,3}}? {_TELL}\b",
        rf"\b{_DOCUMENT} (?:is|are|remains?) (?:\w+ )?silent\b",
        rf"{_START}it (?:does|do|did) not (?:\w+ly |really |even )*(?:say|tell)\b",
        rf"{_START}(?:(?:it|they) )?(?:(?:does|do|did) not|never) (?:\w+ly |really |even )*"
        + _any("mention state specify indicate disclose clarify discuss address", inflected=True)
        + r"\b",
        rf"^(?:\w+ly )*(?:neither|none|nothing|nowhere)\b.{{0,40}}?\b{_DOCUMENT} .{{0,40}}?{_TELL}",
        rf"\b(?:not|nothing|nowhere|never|no)\b(?: [\w'-]+){{0,6}}? {_INSIDE} {_DOCUMENT}$",
        rf"\bnot (?:\w+ly )*(?:be |been )?(?:\w+ly )*{_TOLD}\b(?: [\w'-]+){{0,4}}? {_INSIDE} {_DOCUMENT}",
        # The speaker does not know.
        rf"\b(?:i|we|one|you)(?: [\w']+){{0,2}}? (?:not|never)(?: (?!only\b)[\w'-]+){{0,4}}? {_KNOW}\b(?! how to)",
        rf"\b(?:i|we|one|you)(?: [\w']+){{0,2}}? (?:not|never|no)(?: [\w'-]+){{0,2}}? {_GIVE}(?: [\w'-]+){{0,6}}? "
        rf"(?:{_INFORMATION}|access)\b",
        r"\b(?:i|we) (?:can|could|am|are|will|would)(?: \w+ly)? not(?: \w+ly)? (?:be )?(?:able to )?"
        r"(?:provide|give|offer|advise|help|assist|do (?:that|this|so)|share|comment|recommend|speculate|answer)\b",
        r"\b(?:i|we) neither (?:have|know|find)\b",
        rf"\b(?:i|we) (?:have|had|found|find|see)(?: [\w'-]+)? no(?: [\w'-]+){{0,4}}? {_INFORMATION}\b",
        rf"\b(?:unable|impossible|not (?:\w+ly )?(?:able|possible|enough|sufficient))(?: for \w+)?(?: [\w'-]+){{0,4}}? "
        rf"to (?:\w+ly )*{_KNOW_OR_GIVE}\b",
        # What was asked for is not there.
        r"\b(?:there|here|i see|contains?|provides?|includes?|gives?|offers?|has|makes?|with|due to|because "
        r"of) (?:is |are "
        r"|was |were |being |exists? |seems? to be |appears? to be )?(?:currently )?(?:no|not|insufficient|little)"
        rf"(?: [\w'-]+){{0,4}}? {_INFORMATION}\b",
        rf"{_START}(?:no|not enough|insufficient|not sufficient)(?: [\w'-]+){{0,4}}? {_INFORMATION}\b",
        rf"\b(?:not enough|insufficient|lack of|lacks?|lacking|not sufficient|without enough)(?: [\w'-]+){{0,3}}? "
        rf"{_INFORMATION}\b",
        rf"{_START}{_ASKED} {_IS} (?:also |still )?not (?:\w+ly )*(?:be |been )?(?:\w+ly )*"
        rf"(?:{_TOLD}|appear|exist|seem){_BEHIND}$",
        rf"\b(?:is|are|was|were|been|be) not (?:\w+ly )*{_TOLD_OF_TEXTS}{_BEHIND}$",
        rf"\bnot (?:\w+ly )*been (?:\w+ly )*{_TOLD_OF_TEXTS}{_BEHIND}$",
        r"\bcan not be (?:\w+ly )*(?:answered|determined|ascertained|inferred|deduced|verified|confirmed)\b",
        r"\bcould not be (?:\w+ly )*(?:answered|determined|found)\b",
        rf"{_START}{_ASKED} (?:is|are|was|were|remains?) (?:\w+ly )?"
        r"(?:unknown|unclear|unspecified|unavailable|undetermined|undisclosed|uncertain|unanswerable|missing|absent)\b",
        rf"^not (?:\w+ly )*{_TOLD}{_BEHIND}$",
        # The whole answer.
        r"^(?:the answer is |answer )?(?:n/?a|unknown|unanswerable|unspecified|unclear|undetermined"
        r"|undisclosed|no answer"
        r"(?: \w+)?|none given|not (?:answerable|applicable|sure|clear|known)|no (?:idea|information|data)|not enough "
        r"information|insufficient (?:information|context|data)|can not (?:be )?(?:answer(?:ed)?"
        r"|determined?|tell|say|find"
        r"|found)|do not know|idk|unsure)$",
    )
]
# Without one of these words no clause refuses: most clauses need no closer look.
_HINT = re.compile(
    r"\b(?:no|not|never|nor|neither|none|nothing|nowhere|un\w+|in(?:sufficient|determinate)|lack\w*"
    r"|silent|missing|absent"
    r"|impossible|fails?|without|little|idk|n/?a)\b"
)
_LONGEST_CLAUSE = 400  # in characters: the time that a pattern takes grows with the square of the length
# Clauses that neither refuse nor answer: courtesy, offers and advice, and what else the document is about.
_NEUTRAL = re.compile(
    r"^(?:i am |we are )?(?:so |very |really |deeply )?(?:sorry|afraid)\b|^i apologi[sz]e|^(?:my )?apologies"
    r"|^unfortunately$"
    r"|^(?:please|if|let me know|feel free|would you|could you|do you|can you|is there|you (?:may|might"
    r"|can|could|should"
    r"|would)|i (?:would|can|could|suggest|recommend|am happy|will|was trained)|i'd|i'll|for (?:more|further|that|this"
    r"|accurate|the most|detailed|specific)|to (?:find|answer|determine|get|provide|learn)|it (?:may|might"
    r"|would) be|thank"
    r"|hope|based on|according to|in (?:the|this|your)|as (?:an ai|a language)|my knowledge|additional|more|further)\b"
    r"|^(?:\w+ly |instead |rather |while )*(?:it|they|the (?:rest|only)|there (?:is|are) (?:only"
    r"|just))\b.{0,20}\b(?:only"
    r"|mention|discuss|describe|focus|refer|talk|cover|contain|provide|state|list|speak|deal|about)"
    rf"|^(?:however |instead |while |although |only |rather |both |the only )?(?:{_DOCUMENT})\b"
    r"|^(?:yes|no|hi|hello|ok|okay|sure|thanks?|answer|question)$"
)
_SENTENCE = re.compile(r"(?<=[.!?])[\"')\]]*\s+|\n\s*\n|\n(?=\s*(?:[-*•#]|\d+[.)]))")
_CLAUSE = re.compile(
    r"[,;:]?\s*\b(?:but|however|although|though|nevertheless|nonetheless|that said|still|yet|whereas)\b,?\s*"
    r"|;\s*|\s[-–—]+\s|:\s+|,\s+(?=(?:it|they|there|i|we|this|that|the|no|nor)\b)"
    r"|,?\s+and\s+(?=(?:does|do|did|is|it|there|i)\b)"
)
_CONTRACTED = (
    (re.compile(r"\bcannot\b|\bcan't\b|\bcant\b"), "can not"),
    (re.compile(r"\bwon't\b"), "will not"),
    (re.compile(r"n't\b"), " not"),
    (re.compile(r"\b(do|does|did|is|are|was|could|would)nt\b"), r"\1 not"),
    (re.compile(r"\bi'm\b"), "i am"),
    (re.compile(r"\b(we|they|you)'re\b"), r"\1 are"),
    (re.compile(r"\b(it|that|there|here)'s\b"), r"\1 is"),
    (re.compile(r"\b(i|we|you|they)'ve\b"), r"\1 have"),
)


def refuses(answer: str, phrases: Sequence[str] = ()) -> bool | None:
    """Whether an answer refuses.

    Args:
        phrases: Further wording that marks a refusal, whatever stands beside it.

    Returns:
        None where one clause refuses and another seems to answer: nobody can be sure without reading it.
    """
    text = _plain(answer)
    if any(plain in text for phrase in phrases if (plain := _plain(phrase))):
        return True
    kinds = {_kind(clause) for sentence in _SENTENCE.split(answer) for clause in _clauses(sentence)}
    if "refuses" not in kinds:
        return False
    return None if "answers" in kinds else True


def _clauses(sentence: str) -> list[str]:
    """The clauses of a sentence; none of a question, which neither answers nor refuses."""
    if sentence.rstrip().endswith("?"):
        return []
    return [clause for part in _CLAUSE.split(_plain(sentence)) if (clause := part.strip(" ,.!?\"'()[]"))]


def _kind(clause: str) -> str:
    clause = clause[:_LONGEST_CLAUSE]
    if _HINT.search(clause) and any(pattern.search(clause) for pattern in _REFUSES):
        return "refuses"
    return "neutral" if _NEUTRAL.search(clause) else "answers"


def _plain(text: str) -> str:
    """Lower case on one line, without Markdown, with contractions written out."""
    text = re.sub("[’‘ʼ]", "'", unicodedata.normalize("NFKC", text)).lower()
    text = re.sub(r"[\u200b-\u200f\ufeff]", "", re.sub(r"[*_`#>~|]+", " ", text))
    for pattern, written in _CONTRACTED:
        text = pattern.sub(written, text)
    return " ".join(text.split())
