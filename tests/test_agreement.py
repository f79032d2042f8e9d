"""Several hosts only train together if they have the same program, config, data and environment. A difference is named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import monitoring

from gen.config import load
from gen.errors import UserError
from gen.runtime import agreement, hosts

PROGRAM = "import jax\ndef update(x):\n    return jax.lax.pmean(x * {factor}, 'data')\n"


def lowered(path: str, factor: float) -> str:
    """The program of a function whose source is, as far as Python knows, in the file `path`."""
    module: dict = {}
    exec(compile(PROGRAM.format(factor=factor), path, "exec"), module)
    return jax.pmap(module["update"], axis_name="data").lower(np.ones((1, 3), np.float32)).as_text()


def test_a_program_is_the_same_wherever_its_source_lies():
    assert lowered("/here/a.py", 2.0) == lowered("/another/place/b.py", 2.0)
    assert lowered("/here/a.py", 2.0) != lowered("/here/a.py", 3.0)


def test_a_program_that_differs_names_the_host_and_the_files(monkeypatch):
    def gather(value):
        other = {**value, "families/x.py": "changed"} if isinstance(value, dict) else "other"
        return [value, value, other]

    monkeypatch.setattr(hosts, "gather", gather)
    with pytest.raises(
        UserError, match=r"update on host 2 differs from the program of host 0.*gen differ: families/x.py\)"
    ):
        agreement.check_same_program("update", "module")


@pytest.mark.parametrize("bind", [jax.pmap, jax.jit])
def test_checking_the_program_traces_and_compiles_nothing_twice(bind, monkeypatch):
    events, digests = [], []
    monkeypatch.setattr(hosts, "gather", lambda digest: digests.append(digest) or [digest])
    compiled = bind(lambda x: jnp.tanh(x) * 2.5)
    run = agreement.check_program("update", compiled)
    x = jax.device_put(np.ones((1, 7), np.float32), jax.devices()[0])
    monitoring.register_event_duration_secs_listener(lambda event, duration_secs, **kwargs: events.append(event))
    try:
        for _ in range(3):
            np.testing.assert_allclose(run(x), np.tanh(1) * 2.5, rtol=1e-6)
    finally:
        monitoring.clear_event_listeners()
    assert len(digests) == 1
    counts = [sum(part in name for name in events) for part in ("jaxpr_trace_dur", "jaxpr_to_mlir", "backend_compile")]
    assert counts[1:] == [1, 1], events


def test_facts_that_differ_name_the_field_and_the_hosts(tmp_path):
    config = load("vae_digits")
    facts = agreement.facts(config, tmp_path, "abc")
    agreement.check_facts([facts, facts])
    for kind, name, reason in (
        ("configs", "seed", "different configs: seed is 0 on host 0 and 9 on host 1"),
        ("data", "digest of the data", "different data: digest of the data is abc on host 0 and 9 on host 1"),
        ("versions", "jaxlib", "different versions: jaxlib is"),
        ("environments", "XLA_FLAGS", "different environments: XLA_FLAGS is"),
    ):
        other = {**facts, kind: {**facts[kind], name: "9"}}
        with pytest.raises(UserError, match=reason):
            agreement.check_facts([facts, other])


def test_flags_that_change_no_number_may_differ(monkeypatch):
    assert agreement._flags("--xla_dump_to=/a  --xla_x=1 --xla_force_host_platform_device_count=8") == "--xla_x=1"
    # The word "log" is a part of this name.
    assert agreement._flags("--xla_topology=2") == "--xla_topology=2"


def test_hosts_with_different_numbers_of_devices_are_named():
    agreement.check_devices([0, 0, 1, 1])
    with pytest.raises(UserError, match="there are 1 on host 0, 2 on host 1, 3 on host 2"):
        agreement.check_devices([0, 1, 1, 2, 2, 2])
