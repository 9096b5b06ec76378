"""Whatever a URL or the state of a training holds, it is refused by name, or it does no harm."""

from __future__ import annotations

import pytest

from tests.helpers.servers import serving
from tests.robustness.attacks import attack_samples
from tests.robustness.fuzzing import fuzz

MUTATIONS = 40


@pytest.mark.slow
def test_no_url_and_no_training_state_crashes_hangs_or_leads_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    with serving({"/base.yaml": b"{}"}) as server:
        cases = list(fuzz(attack_samples(tmp_path, server), range(MUTATIONS)))
    problems = [case for case in cases if case.verdict == "problem"]
    assert not problems, "\n".join(map(str, problems[:5]))
    for kind in ("URL", "resume"):
        refused = [case for case in cases if case.kind == kind and case.verdict == "refused"]
        assert len(refused) >= MUTATIONS // 8, f"{kind}: hardly anything was hostile"
