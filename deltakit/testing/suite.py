"""The laws as pytest classes, one test a law. The only file here that needs pytest."""

import copy
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from deltakit.core.method import Method
from deltakit.errors import MissingExtra
from deltakit.testing import checks, loops, states, wrappers
from deltakit.testing.case import Case, NotApplicable
from deltakit.testing.fresh import check_loads_elsewhere
from deltakit.testing.matrix import subjects
from deltakit.testing.models import MODEL_TYPES, make_batch
from deltakit.testing.sites import SITE_LAWS, SiteLaw

try:
    import pytest
except ImportError:
    raise MissingExtra(
        "MethodConformance and FamilyConformance are pytest classes, and pytest is not installed: "
        "pip install 'deltakit-peft[testing]'. The laws in deltakit.testing.checks do without."
    ) from None


def law_name(law: SiteLaw) -> str:
    """The name of a site law in a test's id."""
    return law.__name__.removeprefix("check_")


class Conformance:
    """One test a law, for each case that a subclass names."""

    _cases: ClassVar[dict[str, Case]]

    def __init_subclass__(cls) -> None:
        cls._cases = {}

    def labels(self) -> tuple[str, ...]:
        """The names of the cases."""
        raise NotImplementedError

    def build(self, label: str) -> Case:
        """Makes the case of that name."""
        raise NotImplementedError

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """One run of each law for each label."""
        if "label" in metafunc.fixturenames:
            metafunc.parametrize("label", self.labels())

    @pytest.fixture
    def case(self, label: str) -> Case:
        """The method on the model that the test is about."""
        return self.get(label)

    def get(self, label: str) -> Case:
        """The case of that name, which is built once for all tests of the class."""
        if label not in self._cases:
            self._cases[label] = self.build(label)
        return self._cases[label]

    def test_refused_cleanly(self, case: Case) -> None:
        _hold(checks.check_refused_cleanly, case)

    def test_start(self, case: Case) -> None:
        _hold(checks.check_start, case)

    def test_acts(self, case: Case) -> None:
        _hold(checks.check_acts, case)

    def test_gradients(self, case: Case) -> None:
        _hold(checks.check_gradients, case)

    def test_base_untouched(self, case: Case) -> None:
        _hold(checks.check_base_untouched, case)

    def test_disabled(self, case: Case) -> None:
        _hold(checks.check_disabled, case)

    def test_merge(self, case: Case) -> None:
        _hold(checks.check_merge, case)

    def test_padding(self, case: Case) -> None:
        _hold(checks.check_padding, case)

    def test_attention_implementations(self, case: Case) -> None:
        _hold(checks.check_attention_implementations, case)

    def test_generation(self, case: Case) -> None:
        _hold(checks.check_generation, case)

    def test_resumed(self, case: Case) -> None:
        _hold(checks.check_resumed, case)

    def test_checkpointing(self, case: Case) -> None:
        _hold(checks.check_checkpointing, case)

    def test_losses(self, case: Case) -> None:
        _hold(checks.check_losses, case)

    def test_bf16(self, case: Case) -> None:
        _hold(checks.check_bf16, case)

    def test_dropped_layers(self, case: Case) -> None:
        _hold(checks.check_dropped_layers, case)

    def test_compiles(self, case: Case) -> None:
        _hold(checks.check_compiles, case)

    def test_two_graphs(self, case: Case) -> None:
        _hold(loops.check_two_graphs, case)

    def test_turns(self, case: Case) -> None:
        _hold(loops.check_turns, case)

    def test_joint_loss(self, case: Case) -> None:
        _hold(loops.check_joint_loss, case)

    def test_half_precision(self, case: Case) -> None:
        _hold(loops.check_half_precision, case)

    def test_flags(self, case: Case) -> None:
        _hold(loops.check_flags, case)

    def test_threads(self, case: Case) -> None:
        _hold(states.check_threads, case)

    def test_state_dict(self, case: Case) -> None:
        _hold(states.check_state_dict, case)

    def test_writes(self, case: Case) -> None:
        _hold(states.check_writes, case)

    def test_compiled_first(self, case: Case) -> None:
        _hold(states.check_compiled_first, case)

    def test_fresh_values(self, case: Case) -> None:
        _hold(states.check_fresh_values, case)

    def test_labels(self, case: Case) -> None:
        _hold(states.check_labels, case)

    def test_plain(self, case: Case) -> None:
        _hold(wrappers.check_plain, case)

    def test_equal_experts(self, case: Case) -> None:
        _hold(wrappers.check_equal_experts, case)

    def test_deployed(self, case: Case) -> None:
        _hold(wrappers.check_deployed, case)

    def test_loads_elsewhere(self) -> None:
        cases = [self.get(label) for label in self.labels()]
        check_loads_elsewhere(cases, modules=[type(self).__module__])


class MethodConformance(Conformance):
    """The laws for one method, on a tiny model of each family.

    ::

        class TestMyMethod(MethodConformance):
            method = MyMethod(rank=4)
    """

    method: ClassVar[Method]
    model_types: ClassVar[tuple[str, ...]] = MODEL_TYPES

    def labels(self) -> tuple[str, ...]:
        return self.model_types

    def build(self, label: str) -> Case:
        return Case.of(self.method, label)


class FamilyConformance(Conformance):
    """The laws for one family: those of its sites, and those of each method of deltakit on it.

    ::

        class TestMyFamily(FamilyConformance):
            def model(self):
                return MyModel(MyConfig(hidden_size=16, num_hidden_layers=2)).eval()

    The model should be small, with dropout off and with random biases and norm weights
    (`deltakit.testing.fill`): ones and zeros hide bugs.
    """

    methods: ClassVar[Mapping[str, Method]] = subjects()

    def model(self) -> Any:
        """A small model of the family, registered already, with two layers or more."""
        raise NotImplementedError

    def inputs(self) -> Mapping[str, Tensor]:
        """The model's inputs: text padded on the right unless a subclass overrides it."""
        return make_batch()

    def labels(self) -> tuple[str, ...]:
        return tuple(self.methods)

    @pytest.mark.parametrize("law", SITE_LAWS, ids=law_name)
    def test_sites(self, law: SiteLaw) -> None:
        try:
            law(self.model().eval(), self.inputs())
        except NotApplicable as reason:
            pytest.skip(str(reason))

    def build(self, label: str) -> Case:
        made = next(iter(self._cases.values()), None)
        return Case(
            method=self.methods[label],
            make=functools.partial(copy.deepcopy, self.model().eval())
            if made is None
            else made.make,
            inputs=self.inputs(),
        )


def _hold(law: checks.Law, case: Case) -> None:
    try:
        law(case)
    except NotApplicable as reason:
        pytest.skip(str(reason))
