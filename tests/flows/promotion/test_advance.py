"""`current`: what it points to after each decision, tried again, raced for, put back by hand, and cleaned up around."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess
from typing import TYPE_CHECKING, Any

import pytest
from in_process import ssr

from flows.promotion import advance as pointing
from flows.promotion import log
from flows.promotion.advance import advance, current_for, origin_for, restore
from flows.promotion.copies import copy_adapter, copy_of
from flows.promotion.log import Event, Origin, Promoted, promoted_now, read_log
from flows.promotion.status import promotion_status, status_lines
from flows.rehearsal import plan_steps
from flows.runs import merging
from flows.runs.gc import collect
from flows.runs.records import RunRecord, StepRecord
from tasks.artifacts.digest import digest_of
from tasks.artifacts.store import Manifest, Ref, Store, describe_files, open_store
from tasks.config import RunConfig, parse_recipe
from tasks.errors import ConfigError, StoreError
from tasks.models import model_digest
from tasks.promotion import promote
from tasks.running.step import Planned

if TYPE_CHECKING:  # pytest loads it itself
    from s3 import S3

pytest_plugins = ["s3"]

WEIGHTS = "adapter/adapter_model.safetensors"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


@pytest.fixture
def recipe(tmp_path: Path) -> RunConfig:
    """Its model is never loaded: only its digest is asked for."""
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "model.safetensors"):
        (model / name).write_text("{}")
    raw = {"name": "nightly", "model": {"base": str(model)}, "promotion": {"arm": "ssr"}}
    return parse_recipe(raw, where="toy")


class Run:
    """A run whose steps are done, down to its decision."""

    def __init__(
        self, store: Store, recipe: RunConfig, name: str, before: Promoted | None, outcome: str = "promoted",
        start: Origin | None = None,
    ) -> None:  # fmt: skip
        self.store, self.recipe, self.name, self.before = store, recipe, name, before
        model = {"outside": {"model": model_digest(recipe.model)}}
        self.examples = self._put("ingest", {})
        selected = self._put("select", {"seen": start.examples} if start else {})
        went_on = {"start": start.adapter} if start else {}
        self.adapter = self._put("train", {"targets": selected.ref, **went_on}, model)
        self.scores = self._put("evaluate", {"adapter": self.adapter.ref})
        inputs = {"adapter": self.adapter.ref, "scores_arm": self.scores.ref}
        inputs |= {"current": before.adapter} if before else {}
        self._trained = [self.examples, selected, self.adapter]
        self.planned = [*self._trained, self.scores, self._decided(inputs, outcome)]

    def _decided(self, inputs: dict[str, Ref], outcome: str) -> Planned:
        decision = {"outcome": outcome, "reasons": [f"{self.name} was {outcome}"], "arm": "ssr"}
        return self._put("promote", inputs, files={"decision.json": json.dumps(decision)})

    def decide_again(self, now: Promoted, outcome: str = "current") -> Run:
        """The run of another night, which makes this run's adapter and measures it."""
        self.before = now
        self.scores = self._put("evaluate", {"adapter": self.adapter.ref})
        inputs = {"adapter": self.adapter.ref, "scores_arm": self.scores.ref, "current": now.adapter}
        self.planned = [*self._trained, self.scores, self._decided(inputs, outcome)]
        return self

    def _put(
        self, step: str, inputs: dict[str, Ref], identity: dict[str, Any] | None = None,
        files: dict[str, str] | None = None,
    ) -> Planned:  # fmt: skip
        ref, identity = Ref(step=step, fingerprint=digest_of([step, self.name, inputs])), identity or {}
        made_from = {name: self.store.manifest(**one) for name, one in inputs.items()}
        digests = {name: manifest.content_digest for name, manifest in made_from.items() if manifest}
        with self.store.staging(**ref) as out:
            (out / WEIGHTS).parent.mkdir()
            (out / WEIGHTS).write_text(self.name)
            for name, content in (files or {}).items():
                (out / name).write_text(content)
            self.store.publish(out, Manifest(step, ref["fingerprint"], identity, inputs, describe_files(out), digests))
        return Planned(promote, step, ref, identity, {}, inputs)

    def advance(self, flow_run_id: str = "") -> Event:
        event = advance(
            self.store, self.recipe, self.planned, self.before, run_id=f"run-{self.name}", flow_run_id=flow_run_id
        )
        assert event is not None
        return event


def outcomes(store: Store) -> list[tuple[str, str]]:
    return [(event.run_id, event.outcome) for event in read_log(store, "nightly").events]


def pointer(store: Store) -> dict[str, Any]:
    found: dict[str, Any] = store.read_json("current", "nightly.json")
    return found


def grown_old(folder: Path, days: float = 2) -> None:
    """As if nothing there had changed for days."""
    then = time.time() - days * 24 * 3600
    for path in folder.rglob("*"):
        os.utime(path, (then, then))


def content(store: Store, promoted: Promoted) -> str:
    """What the weights of an adapter are."""
    return (store.fetch(promoted.adapter) / WEIGHTS).read_text()


def weights_of(store: Store, adapter: Ref) -> str:
    return store.require(adapter).weights_digest


def test_what_stands_is_shown_with_every_decision_newest_first(store: Store, recipe: RunConfig) -> None:
    with pytest.raises(ConfigError, match="nightly: no run of it"):
        promotion_status(store, "nightly")
    Run(store, recipe, "one", None).advance()
    Run(store, recipe, "two", promoted_now(store, "nightly"), outcome="kept").advance()
    lines = list(status_lines(promotion_status(store, None)))
    assert "run-one (ssr) since" in lines[0]
    assert [line.split("  ", 1)[1] for line in lines if ", against " in line] == [
        "kept      run-two, against run-one", "promoted  run-one, against base",
    ]  # fmt: skip
    assert "    two was kept" in lines


def test_a_promoted_adapter_is_what_current_points_to(store: Store, recipe: RunConfig) -> None:
    assert current_for(store, recipe) is None
    run = Run(store, recipe, "one", None)
    assert run.advance().outcome == "promoted"
    now = current_for(store, recipe)
    assert now is not None
    assert (now.run_id, now.arm, now.trained, now.examples) == ("run-one", "ssr", run.adapter.ref, run.examples.ref)
    assert content(store, now) == "one"
    found = pointer(store)
    assert (found["adapter"], found["trained"], found["run_id"]) == (now.adapter, run.adapter.ref, "run-one")
    assert Path(found["folder"], Path(WEIGHTS).name).read_text() == "one"


NIGHTS = (
    # The runs in turn, each with its own decision unless that is to promote, and after @ the adapter that it was
    # planned against unless that is the promoted one. Then the log, whose adapter is promoted, and the last reason.
    ("a kept one leaves what is promoted", "one, two kept", "one promoted, two kept", "one", "two was kept"),
    ("kept before anything was promoted", "one kept", "one kept", None, "one was kept"),
    ("the promoted one decides nothing", "one, same current", "one promoted", "one", "one was promoted"),
    ("a slow run never replaces what was promoted since", "quick, slow @base", "quick promoted, slow kept", "quick",
     "it was compared with the base, but meanwhile run-quick was promoted"),
    ("a run planned against one that was replaced and restored", "one, two, restore one, slow @one",
     "one promoted, two promoted, one restored, slow kept", "one",
     "it was compared with run-one, but meanwhile run-one was restored by hand. The next run compares with that"),
    ("a run planned against one that a person replaced", "one, two, restore one, slow @two",
     "one promoted, two promoted, one restored, slow kept", "one",
     "it was compared with run-two, but meanwhile run-one was restored by hand"),
    ("the next run may replace the restored one", "one, two, restore one, three",
     "one promoted, two promoted, one restored, three promoted", "three", "three was promoted"),
    ("the next runs on the same data do not undo a restoration", "one, two, restore one, two, two",
     "one promoted, two promoted, one restored, two kept", "one",
     "a person replaced an adapter with the same weights"),
    ("the replaced one can be restored in turn", "one, two, restore one, restore two",
     "one promoted, two promoted, one restored, two restored", "two", "by hand"),
)  # fmt: skip


@pytest.mark.parametrize(
    ("nights", "expected", "now", "reason"), [row[1:] for row in NIGHTS], ids=[r[0] for r in NIGHTS]
)
def test_the_log_after_some_nights(
    store: Store, recipe: RunConfig, nights: str, expected: str, now: str | None, reason: str
) -> None:
    seen: dict[str, Promoted | None] = {"base": None}
    for i, night in enumerate(nights.split(", ")):
        words = [word for word in night.split() if word != "restore"]
        if night.startswith("restore"):
            restore(store, "nightly", f"run-{words[0]}")
        else:
            against = [seen[word[1:]] for word in words if word.startswith("@")]
            before = against[0] if against else current_for(store, recipe)
            outcome = next((word for word in words[1:] if not word.startswith("@")), "promoted")
            Run(store, recipe, words[0], before, outcome).advance(f"flow-{i}")
        seen.setdefault(words[0], promoted_now(store, "nightly"))
    assert ", ".join(f"{run.removeprefix('run-')} {outcome}" for run, outcome in outcomes(store)) == expected
    assert read_log(store, "nightly").events[-1].reasons[0].startswith(reason)
    if now is None:
        assert current_for(store, recipe) is None
        assert not (Path(store.root) / "current" / "nightly.json").exists()
    else:
        assert pointer(store)["run_id"] == f"run-{now}"


def test_the_run_that_makes_the_restored_adapter_again_adds_nothing(store: Store, recipe: RunConfig) -> None:
    one, _ = in_turn(store, recipe, "one", "two")
    restore(store, "nightly", "run-one")
    now = promoted_now(store, "nightly")
    assert now is not None
    assert now.trained == one.adapter.ref
    assert one.decide_again(now).advance().outcome == "current"
    assert len(outcomes(store)) == 3


@pytest.mark.parametrize("outcome", ["promoted", "kept"])
def test_a_run_tried_again_after_its_decision_is_planned_as_before_and_changes_nothing(
    store: Store, recipe: RunConfig, outcome: str
) -> None:
    Run(store, recipe, "one", None).advance("flow-1")
    before = current_for(store, recipe, "flow-2")
    first = Run(store, recipe, "two", before, outcome).advance("flow-2")
    again = current_for(store, recipe, "flow-2")
    assert again == before
    second = Run(store, recipe, "two", again, outcome).advance("flow-2")
    assert second == first
    assert outcomes(store) == [("run-one", "promoted"), ("run-two", outcome)]


def test_a_run_tried_again_after_a_later_one_was_promoted_does_not_take_its_place(
    store: Store, recipe: RunConfig
) -> None:
    Run(store, recipe, "one", None).advance("flow-1")
    Run(store, recipe, "two", promoted_now(store, "nightly")).advance("flow-2")
    Run(store, recipe, "one", current_for(store, recipe, "flow-1")).advance("flow-1")
    assert pointer(store)["run_id"] == "run-two"
    assert len(outcomes(store)) == 2


def test_the_same_decision_by_another_run_is_not_written_twice(store: Store, recipe: RunConfig) -> None:
    # Two workers with the same recipe on the same data at once: the same artifacts, so the same decision.
    for outcome, name in (("promoted", "one"), ("kept", "two")):
        before = promoted_now(store, "nightly")
        runs = [Run(store, recipe, name, before, outcome) for _ in range(2)]
        assert [run.advance(f"{name}-{i}").outcome for i, run in enumerate(runs)] == [outcome, outcome]
    assert outcomes(store) == [("run-one", "promoted"), ("run-two", "kept")]


def test_of_many_that_decide_at_once_one_is_promoted_and_none_is_forgotten(store: Store, recipe: RunConfig) -> None:
    runs = [Run(store, recipe, str(i), None) for i in range(12)]
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda run: run.advance(f"flow-{run.name}"), runs))
    found = outcomes(store)
    assert sorted(run for run, _ in found) == sorted(f"run-{i}" for i in range(12))
    promoted = [run for run, outcome in found if outcome == "promoted"]
    now = promoted_now(store, "nightly")
    assert now is not None
    assert promoted == [now.run_id]


def test_an_event_that_comes_late_is_read_in_its_place_and_what_was_compared_otherwise_is_kept_back(
    store: Store, recipe: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Both runs have read the history before either writes; the first by name is the last to arrive.
    late, quick = Run(store, recipe, "a", None), Run(store, recipe, "b", None)
    empty = pointing.read_log(store, "nightly")
    assert quick.advance().outcome == "promoted"
    follower = Run(store, recipe, "c", promoted_now(store, "nightly"))
    follower.advance()
    monkeypatch.setattr(pointing, "read_log", AtFirst(empty, pointing.read_log))
    assert late.advance().outcome == "promoted"
    monkeypatch.undo()
    assert pointer(store)["run_id"] == "run-a"
    assert outcomes(store) == [("run-a", "promoted"), ("run-b", "kept"), ("run-c", "kept")]
    assert (
        read_log(store, "nightly").events[-1].reasons[0].startswith("it was compared with run-b, but meanwhile run-a")
    )
    last = Run(store, recipe, "d", promoted_now(store, "nightly")).advance()
    assert (last.outcome, last.number) == ("promoted", 3)


class AtFirst:
    """Answers the first calls with something else: one that promotes reads the history before and after its copies."""

    def __init__(self, first: Any, then: Callable[..., Any], n_calls: int = 2) -> None:
        self._first, self._then, self._left = first, then, n_calls

    def __call__(self, *arguments: Any) -> Any:
        self._left -= 1
        return self._first if self._left >= 0 else self._then(*arguments)


def made_again(store: Store, run: Run, weights: str) -> None:
    """Publish other weights under the fingerprint of a run's adapter, as `--force train` may on a GPU."""
    ref = run.adapter.ref
    manifest = store.manifest(**ref)
    assert manifest is not None
    with store.staging(**ref) as out:
        (out / WEIGHTS).parent.mkdir()
        (out / WEIGHTS).write_text(weights)
        store.publish(out, replace(manifest, files=describe_files(out)))


def test_a_promoted_adapter_made_again_by_force_and_refused_stays_as_it_was(store: Store, recipe: RunConfig) -> None:
    run = Run(store, recipe, "one", None)
    run.advance()
    before = pointer(store)
    for i, weights in enumerate(("other", "others")):
        made_again(store, run, weights)
        now = current_for(store, recipe)
        assert now is not None
        assert run.decide_again(now, "kept").advance(f"forced-{i}").outcome == "kept"
    assert pointer(store) == before
    assert Path(before["folder"], Path(WEIGHTS).name).read_text() == "one"
    (shown,) = promotion_status(store, "nightly")
    assert (shown["current"]["folder"], shown["current"]["intact"]) == (before["folder"], True)
    assert outcomes(store) == [("run-one", "promoted"), ("run-one", "kept")]  # what still fails is not told twice


def test_a_promoted_adapter_made_again_by_force_takes_its_own_place_where_it_is_no_worse(
    store: Store, recipe: RunConfig
) -> None:
    run = Run(store, recipe, "one", None)
    run.advance()
    first = promoted_now(store, "nightly")
    assert first is not None
    for i, (weights, outcome) in enumerate((("worse", "kept"), ("better", "promoted"))):
        made_again(store, run, weights)
        # The same steps on the same inputs, so a decision under the same name as the one before.
        assert run.decide_again(first, outcome).advance(f"forced-{i}").outcome == outcome
    now = promoted_now(store, "nightly")
    assert now is not None
    assert (content(store, now), content(store, first)) == ("better", "one")
    assert run.decide_again(now).advance("night").outcome == "current"
    assert [outcome for _, outcome in outcomes(store)] == ["promoted", "kept", "promoted"]


def test_an_adapter_made_again_between_measuring_and_promoting_is_not_promoted(store: Store, recipe: RunConfig) -> None:
    run = Run(store, recipe, "one", None)
    made_again(store, run, "never measured")
    with pytest.raises(StoreError, match="made the adapter again since it was measured"):
        run.advance()
    assert outcomes(store) == []


def test_what_a_run_promoted_is_what_is_merged_whatever_was_trained_since(
    store: Store, recipe: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(store, recipe, "one", None)
    run.advance()
    made_again(store, run, "other")
    steps = (StepRecord("train ssr", run.adapter.ref, {}),)
    record = RunRecord("run-one", "nightly", "2026-11-27T00:00:00+00:00", recipe.model_dump(mode="json"), steps=steps)
    (tmp_path / "merged").mkdir()
    merged: list[str] = []
    weights = Path(WEIGHTS).name
    monkeypatch.setattr(merging, "merge", lambda model, adapter, out: merged.append((adapter / weights).read_text()))
    for one in (record, replace(record, run_id="run-two")):
        merging.merge_arm(store, one, None, tmp_path / "merged")
    assert merged == ["one", "other"]


def test_the_pointer_that_a_killed_run_left_behind_is_put_right_by_the_next_though_nothing_is_new(
    store: Store, recipe: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_turn(store, recipe, "one")
    with monkeypatch.context() as killed:
        killed.setattr(pointing, "write_pointer", raise_(KeyboardInterrupt))
        run = Run(store, recipe, "two", promoted_now(store, "nightly"))
        with pytest.raises(KeyboardInterrupt):
            run.advance()
    assert pointer(store)["run_id"] == "run-one"
    now = current_for(store, recipe)
    assert now is not None
    assert run.decide_again(now).advance("another night").outcome == "current"
    assert pointer(store)["run_id"] == "run-two"


def test_of_two_that_write_the_pointer_at_once_the_last_to_write_has_read_the_whole_log(
    store: Store, recipe: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_turn(store, recipe, "one")
    then = log.read_log(store, "nightly")
    in_turn(store, recipe, "two")
    # Has read the log before the other has written: writes after it.
    monkeypatch.setattr(log, "read_log", AtFirst(then, log.read_log, 1))
    log.write_pointer(store, "nightly")
    assert pointer(store)["run_id"] == "run-two"


def raise_(error: type[BaseException]) -> Callable[..., None]:
    def fail(*arguments: Any) -> None:
        raise error

    return fail


def test_two_that_copy_an_adapter_at_once_make_one_copy(store: Store, recipe: RunConfig) -> None:
    run = Run(store, recipe, "one", None)
    weights = weights_of(store, run.adapter.ref)
    with ThreadPoolExecutor(8) as pool:
        refs = list(pool.map(lambda _: copy_adapter(store, run.adapter.ref, weights), range(8)))
    assert all(ref == refs[0] for ref in refs)
    assert store.verified(**refs[0]) is not None
    assert store.names("steps", refs[0]["step"]) == [weights]


def test_a_damaged_copy_is_made_again(store: Store, recipe: RunConfig) -> None:
    run = Run(store, recipe, "one", None)
    weights = weights_of(store, run.adapter.ref)
    ref = copy_adapter(store, run.adapter.ref, weights)
    (store.fetch(ref) / WEIGHTS).write_text("t0rn")
    assert copy_adapter(store, run.adapter.ref, weights) == ref
    assert store.verified(**ref) is not None


def test_an_adapter_that_is_gone_is_named_with_what_to_do(store: Store, recipe: RunConfig) -> None:
    in_turn(store, recipe, "one")
    shutil.rmtree(Path(store.root) / "steps" / "promoted")
    with pytest.raises(StoreError, match=r"is gone\. Bring it back, .*Or start over: remove .*/current/nightly/"):
        current_for(store, recipe)


def test_an_adapter_of_another_base_model_is_refused(store: Store, recipe: RunConfig) -> None:
    Run(store, recipe, "one", None).advance()
    other = parse_recipe({"name": "nightly", "promotion": {"arm": "ssr"}}, where="toy")
    with pytest.raises(StoreError, match=r"belongs to another base model than model\.base=lab"):
        current_for(store, other)


def test_a_recipe_without_promotion_reads_and_moves_nothing(store: Store, recipe: RunConfig) -> None:
    run = Run(store, recipe, "one", None)
    without = parse_recipe({"name": "nightly"}, where="toy")
    assert current_for(store, without) is None
    assert advance(store, without, run.planned, None, run_id="run") is None
    assert not (Path(store.root) / "current").exists()


def test_an_adapter_trained_on_new_rows_goes_on_from_the_promoted_one_and_from_the_same_one_where_none_is_new(
    store: Store, recipe: RunConfig
) -> None:
    first = Run(store, recipe, "one", None)
    first.advance()
    now = promoted_now(store, "nightly")
    assert origin_for(None, first.examples.ref) is None
    assert origin_for(now, first.examples.ref) is None
    grown = Ref(step="ingest", fingerprint="more")
    origin = origin_for(now, grown)
    assert now is not None
    assert origin == Origin(now.adapter, first.examples.ref)
    second = Run(store, recipe, "two", now, start=origin)
    second.advance()
    assert origin_for(promoted_now(store, "nightly"), second.examples.ref) == origin


def test_gc_leaves_the_last_five_that_were_promoted(store: Store, recipe: RunConfig) -> None:
    runs = in_turn(store, recipe, *"abcdefg")
    runs.append(Run(store, recipe, "h", promoted_now(store, "nightly"), outcome="kept"))
    runs[-1].advance()
    weights = [weights_of(store, run.adapter.ref) for run in runs]
    collect(store, keep=0, remove=True)
    there = [store.verified(**run.adapter.ref) is not None for run in runs]
    assert there == [False, False, True, True, True, True, True, False]
    copies = [copy_of(weights) for weights in weights]
    assert [store.verified(**copy) is not None for copy in copies] == [True] * 7 + [False]  # of today
    grown_old(Path(store.root))
    collect(store, keep=0, remove=True)
    assert [store.verified(**copy) is not None for copy in copies] == there
    now = promoted_now(store, "nightly")
    assert now is not None
    assert all(store.verified(**ref) for ref in [*now.artifacts(), now.trained])


def test_gc_leaves_one_that_was_put_back_and_those_before_it(store: Store, recipe: RunConfig) -> None:
    runs = in_turn(store, recipe, *"abcdef")
    restore(store, "nightly", "run-b")
    collect(store, keep=0, remove=True)
    assert [store.verified(**run.adapter.ref) is not None for run in runs] == [False, True, True, True, True, True]
    assert restore(store, "nightly", "run-c").outcome == "restored"


# --- put back by hand ---


def in_turn(store: Store, recipe: RunConfig, *names: str) -> list[Run]:
    """Runs that were promoted one after the other."""
    runs = []
    for name in names:
        runs.append(Run(store, recipe, name, promoted_now(store, "nightly")))
        assert runs[-1].advance().outcome == "promoted"
    return runs


def test_one_that_was_promoted_before_is_put_back_and_the_history_says_by_hand_and_why(
    store: Store, recipe: RunConfig
) -> None:
    one, _ = in_turn(store, recipe, "one", "two")
    before = read_log(store, "nightly").events
    event = restore(store, "nightly", "run-one", reason="two is rude to customers")
    assert (event.outcome, event.reasons) == ("restored", ["by hand: two is rude to customers"])
    assert read_log(store, "nightly").events == [*before, event]
    assert outcomes(store) == [("run-one", "promoted"), ("run-two", "promoted"), ("run-one", "restored")]
    found = pointer(store)
    assert (found["run_id"], found["trained"]) == ("run-one", one.adapter.ref)
    assert Path(found["folder"], Path(WEIGHTS).name).read_text() == "one"
    (shown,) = promotion_status(store, "nightly")
    assert (shown["current"]["run_id"], shown["current"]["since"][:19]) == ("run-one", event.at[:19])
    lines = list(status_lines([shown]))
    assert f"\n{event.at[:19]}  restored  run-one, in place of run-two" in lines
    assert "    by hand: two is rude to customers" in lines


def test_the_beginning_of_a_run_id_is_enough_where_no_other_begins_so(store: Store, recipe: RunConfig) -> None:
    in_turn(store, recipe, "alpha", "beta", "betty")
    with pytest.raises(ConfigError, match=r"run-be: the ids of several runs begin so .*run-betty, run-beta, run-alpha"):
        restore(store, "nightly", "run-be")
    assert restore(store, "nightly", "run-a").run_id == "run-alpha"


def test_a_run_tried_again_after_another_was_put_back_changes_nothing(store: Store, recipe: RunConfig) -> None:
    Run(store, recipe, "one", None).advance("flow-1")
    first = Run(store, recipe, "two", promoted_now(store, "nightly")).advance("flow-2")
    restore(store, "nightly", "run-one")
    again = Run(store, recipe, "two", current_for(store, recipe, "flow-2")).advance("flow-2")
    assert again == first
    assert pointer(store)["run_id"] == "run-one"
    assert len(outcomes(store)) == 3


def test_what_was_never_promoted_cannot_be_put_back(store: Store, recipe: RunConfig) -> None:
    in_turn(store, recipe, "one", "two")
    Run(store, recipe, "three", promoted_now(store, "nightly"), outcome="kept").advance()
    for run_id in ("run-three", "nosuch"):
        with pytest.raises(
            ConfigError, match=rf"{run_id}: no such run has ever promoted .*newest first: run-two, run-one"
        ):
            restore(store, "nightly", run_id)
    assert len(outcomes(store)) == 3


def test_the_one_that_is_promoted_already_is_not_put_back(store: Store, recipe: RunConfig) -> None:
    in_turn(store, recipe, "one", "two")
    with pytest.raises(ConfigError, match="the adapter of run-two is the promoted one already"):
        restore(store, "nightly", "run-two")
    restore(store, "nightly", "run-one")
    with pytest.raises(ConfigError, match="the adapter of run-one is the promoted one already"):
        restore(store, "nightly", "run-one")
    assert len(outcomes(store)) == 3


def test_one_that_is_gone_or_damaged_is_not_put_back_and_one_that_was_trained_again_is_as_it_was(
    store: Store, recipe: RunConfig
) -> None:
    gone, torn, alone, other, _ = in_turn(store, recipe, "gone", "torn", "alone", "other", "last")
    folder = Path(store.root) / "steps"
    shutil.rmtree(folder / "promoted" / weights_of(store, gone.adapter.ref))
    (folder / "promoted" / weights_of(store, torn.adapter.ref) / WEIGHTS).write_text("t0rn")
    shutil.rmtree(folder / "ingest" / alone.examples.ref["fingerprint"])
    made_again(store, other, "other weights")
    for run_id, problem in (
        ("run-gone", "the adapter of run-gone is gone, or damaged"),
        ("run-torn", "the adapter of run-torn is gone, or damaged"),
        ("run-alone", r"ingest/\w+: it is gone, and the adapter of run-alone cannot be promoted without it"),
    ):
        with pytest.raises(StoreError, match=problem):
            restore(store, "nightly", run_id)
    assert len(outcomes(store)) == 5
    assert pointer(store)["run_id"] == "run-last"
    restore(store, "nightly", "run-other")
    assert Path(pointer(store)["folder"], Path(WEIGHTS).name).read_text() == "other"


@pytest.mark.parametrize("decides_first", ["the run", "the hand"])
def test_of_a_run_and_a_hand_that_decide_at_once_one_counts(
    store: Store, recipe: RunConfig, monkeypatch: pytest.MonkeyPatch, decides_first: str
) -> None:
    in_turn(store, recipe, "one", "two")
    # Both have read the history before either writes; the names of their files decide.
    run, seen = Run(store, recipe, "three", promoted_now(store, "nightly")), pointing.read_log(store, "nightly")
    if decides_first == "the run":
        run.advance("a-flow")
        monkeypatch.setattr(pointing, "read_log", AtFirst(seen, pointing.read_log, 1))
        with pytest.raises(
            StoreError, match=r"was to replace run-two, but meanwhile run-three was promoted\. See `ssr"
        ):
            restore(store, "nightly", "run-one")
        assert pointer(store)["run_id"] == "run-three"
        return
    restore(store, "nightly", "run-one")
    monkeypatch.setattr(pointing, "read_log", AtFirst(seen, pointing.read_log))
    assert run.advance("z-flow").outcome == "kept"
    assert pointer(store)["run_id"] == "run-one"


def test_what_was_promoted_while_a_run_copies_its_adapter_stays(
    store: Store, recipe: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_turn(store, recipe, "one", "two")
    slow = Run(store, recipe, "slow", promoted_now(store, "nightly"))
    quick = Run(store, recipe, "quick", promoted_now(store, "nightly"))
    real = pointing.copy_adapter

    def copies(*arguments: Any) -> Ref:
        monkeypatch.setattr(pointing, "copy_adapter", real)
        assert quick.advance("z-flow").outcome == "promoted"
        return real(*arguments)

    monkeypatch.setattr(pointing, "copy_adapter", copies)
    assert slow.advance("a-flow").outcome == "kept"
    assert pointer(store)["run_id"] == "run-quick"
    assert outcomes(store)[2:] == [("run-quick", "promoted"), ("run-slow", "kept")]


def test_the_command_puts_back_and_says_what_it_refuses(store: Store, recipe: RunConfig) -> None:
    in_turn(store, recipe, "one", "two")

    def current(*arguments: str) -> CompletedProcess[str]:
        return ssr("current", *arguments, "--store", store.uri)

    done = current("nightly", "--restore", "run-one", "--reason", "rude [sic]")
    assert done.returncode == 0
    assert "nightly  run-one (ssr) since 20" in done.stdout
    assert "restored  run-one, in place of run-two\n    by hand: rude [sic]\n" in done.stdout
    assert pointer(store)["run_id"] == "run-one"
    (found,) = json.loads(current("nightly", "--restore", "run-two", "--json").stdout)
    assert found["current"]["run_id"] == "run-two"
    assert [(event["outcome"], event["replaced"]) for event in found["history"]][:2] == [
        ("restored", "run-one"), ("restored", "run-two"),
    ]  # fmt: skip
    for wrong, problem in (
        (("nightly", "--restore", "run-two"), "is the promoted one already"),
        (("nightly", "--restore", "run-x"), "no such run has ever promoted"),
        (("weekly", "--restore", "run-one"), "weekly: no run of it"),
        (("--restore", "run-one"), "ssr current NAME --restore RUN_ID"),
        (("nightly", "--reason", "rude"), "ssr current NAME --restore RUN_ID"),
    ):
        refused = current(*wrong)
        assert (refused.returncode, problem in " ".join(refused.stderr.split())) == (2, True), refused.stderr
    assert len(outcomes(store)) == 4


def test_the_command_shows_what_is_promoted_since_when_and_why(store: Store, recipe: RunConfig) -> None:
    in_turn(store, recipe, "one")
    Run(store, recipe, "two", promoted_now(store, "nightly"), outcome="kept").advance()

    def current(*arguments: str) -> CompletedProcess[str]:
        return ssr("current", *arguments, "--store", store.uri)

    (found,) = json.loads(current("nightly", "--json").stdout)
    assert (found["current"]["run_id"], found["current"]["intact"]) == ("run-one", True)
    assert [event["outcome"] for event in found["history"]] == ["kept", "promoted"]
    shown = current().stdout
    assert "nightly  run-one (ssr) since 20" in shown
    assert "two was kept" in shown
    unknown = current("weekly")
    assert unknown.returncode == 2
    assert "weekly: no run of it" in unknown.stderr
    assert "There are: nightly." in " ".join(unknown.stderr.split())

    shutil.rmtree(Path(store.root) / "steps" / "promoted")
    assert "the promoted adapter is no longer in the store" in current("nightly").stdout


# --- what a run is planned with ---


@pytest.fixture
def growing(recipe: RunConfig, tmp_path: Path) -> Callable[..., RunConfig]:
    """The recipe over a file of rows, with other sections as given."""
    (tmp_path / "rows.jsonl").write_text('{"question": "1 + 1?", "answer": "2"}\n')

    def make(**sections: Any) -> RunConfig:
        raw = recipe.model_dump(mode="json") | {
            "data": {"sources": [{"name": "rows", "path": str(tmp_path / "rows.jsonl")}]},
            "arms": [{"name": "ssr", "policy": "ssr"}], "evaluate": {"benchmarks": ["lab"]},
        }  # fmt: skip
        return parse_recipe(raw | sections, where="toy")

    return make


def planned_steps(recipe: RunConfig, current: Promoted | None) -> dict[str, Planned]:
    return {one.label: one for one in plan_steps(recipe, current)}


@pytest.fixture
def promoted(store: Store, recipe: RunConfig) -> Promoted:
    Run(store, recipe, "one", None).advance()
    now = promoted_now(store, "nightly")
    assert now is not None
    return now


def test_the_promoted_adapter_is_measured_on_todays_items(
    growing: Callable[..., RunConfig], promoted: Promoted
) -> None:
    first, later = (planned_steps(growing(), current) for current in (None, promoted))
    assert "evaluate current" not in first
    assert later["evaluate current"].inputs["adapter"] == promoted.adapter
    assert later["promote"].inputs["current"] == promoted.adapter
    assert later["promote"].inputs["scores_current"] == later["evaluate current"].ref
    # What it is compared with changes nothing of how the arm is made and measured.
    assert {label for label in first if first[label].ref != later[label].ref} == {"promote", "report"}


def test_on_a_server_it_is_one_more_adapter(growing: Callable[..., RunConfig], promoted: Promoted) -> None:
    planned = planned_steps(growing(engine="vllm"), promoted)
    assert planned["measure"].inputs["adapter_current"] == promoted.adapter
    assert list(planned).index("measure") < list(planned).index("evaluate current")


def test_new_rows_alone_are_selected_and_trained_on_from_the_promoted_adapter(
    growing: Callable[..., RunConfig], promoted: Promoted
) -> None:
    recipe = growing(promotion={"arm": "ssr", "train_on": "new"})
    first, later = (planned_steps(recipe, current) for current in (None, promoted))
    assert "seen" not in first["select ssr"].inputs
    assert "start" not in first["train ssr"].inputs
    assert later["select ssr"].inputs["seen"] == promoted.examples
    assert later["train ssr"].inputs["start"] == promoted.adapter
    everything = planned_steps(growing(), promoted)
    assert everything["train ssr"].ref == first["train ssr"].ref


def test_a_recipe_without_promotion_plans_no_decision(growing: Callable[..., RunConfig]) -> None:
    assert "promote" not in planned_steps(growing(promotion=None), None)


# --- on S3 ---


@pytest.fixture
def on_s3(s3: S3) -> Store:
    return open_store(s3.uri)


def test_current_moves_on_s3_as_it_does_here(on_s3: Store, recipe: RunConfig) -> None:
    Run(on_s3, recipe, "one", None).advance("flow-1")
    Run(on_s3, recipe, "two", promoted_now(on_s3, "nightly"), outcome="kept").advance("flow-2")
    runs = [Run(on_s3, recipe, str(i), promoted_now(on_s3, "nightly")) for i in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda run: run.advance(f"flow-{run.name}"), runs))
    found = outcomes(on_s3)
    assert next(run for run, outcome in found if outcome == "promoted") == "run-one"
    assert [outcome for _, outcome in found].count("promoted") == 2
    assert len(found) == 6
    now = promoted_now(on_s3, "nightly")
    assert now is not None
    assert content(on_s3, now) == now.run_id.removeprefix("run-")
    assert log.recipes_with_log(on_s3) == ["nightly"]
    collect(on_s3, keep=0, remove=True)
    assert on_s3.verified(**now.adapter) is not None
    restore(on_s3, "nightly", "run-one", reason="as it does here")
    assert pointer(on_s3)["run_id"] == "run-one"
    assert Run(on_s3, recipe, "late", now).advance("flow-3").outcome == "kept"
