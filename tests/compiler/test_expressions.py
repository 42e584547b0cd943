"""Each operation that kernels and scalars can write is torch's: a wrong expression is named here, and first."""

import inspect
import re

import pytest

from gradtx.compiler import write_expressions
from gradtx.compiler.graph import operator_name
from gradtx.compiler.lower import lower
from gradtx.compiler.write_expressions import ExpressionWriter
from tests.compiler.expressions import (
    BF16,
    DTYPES,
    F32,
    LANGUAGES,
    PROGRAMS,
    SCALARS,
    fault_of_kernels,
    fault_of_scalars,
    operands_of,
    reason_to_skip,
    recording_of,
    wrong_operations,
)

each = pytest.mark.parametrize
CASES = [pytest.param(program, name, id=name) for program in PROGRAMS for name in PROGRAMS[program]]


@each("language", LANGUAGES)
@each("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@each(("program", "name"), CASES)
def test_an_operation_of_kernels_is_that_of_torch(program, name, dtype, language):
    if reason := reason_to_skip(name, dtype, language):
        pytest.skip(reason)
    if fault := fault_of_kernels(program, name, dtype, language):
        pytest.fail(fault, pytrace=False)


@each("name", SCALARS)
def test_an_operation_of_scalars_is_that_of_torch_or_raises_an_error_that_calls_torch(name):
    if fault := fault_of_scalars(name):
        pytest.fail(fault, pytrace=False)


def operators_of(operations):
    """The operators in the programs of operations, as kernels write them; copies are there in one dtype or another."""
    operators = set()
    for dtype in (F32, BF16):
        recording, _, _ = recording_of(operations, operands_of(dtype, "C++"))
        nodes = lower(recording, decides=False).graph.nodes
        operators.update(operator_name(node) for node in nodes if node.op == "call_function")
    return operators


def written_operators():
    """The operators of which the code of expressions has a case."""
    code = inspect.getsource(ExpressionWriter._arithmetic) + inspect.getsource(ExpressionWriter._code)
    cases = re.findall(r"name (?:==|in) (\([^)]*\)|\S+)", code)
    named = set(re.findall(r'"(\w+)"', " ".join(cases)))
    targets = set(re.findall(r"aten\.(\w+)", inspect.getsource(ExpressionWriter._expression)))
    assert {"add", "where", "isnan", "clamp"} <= named
    assert {"_to_copy", "arange"} <= targets
    tables = write_expressions.COMPARISONS, write_expressions.INFIX, write_expressions.RENAMED
    packets = {
        target.__name__.partition(".")[0] for target in (*write_expressions.CONSTANTS, *write_expressions.REDUCTIONS)
    }
    return set().union(named, targets, packets, *tables, write_expressions.FUNCTIONS.split())


def test_all_operators_that_kernels_can_write_are_here():
    present = set().union(*(operators_of(operations.values()) for operations in PROGRAMS.values()))
    assert written_operators() - present == set()


def test_each_name_is_that_of_an_operator_in_its_program():
    operations = {name: operation for program in PROGRAMS.values() for name, operation in program.items()}
    absent = {name for name, operation in operations.items() if name.partition(",")[0] not in operators_of([operation])}
    assert absent == set()


def test_messages_of_tests_of_whole_chains_name_an_operation_that_is_wrong_alone(monkeypatch):
    packet, _ = SCALARS["maximum"]
    monkeypatch.setitem(SCALARS, "maximum", (packet, lambda x, y: min(x, y)))
    told = wrong_operations.__wrapped__()
    assert told == "\nwrong alone: maximum of (0.0, 1.0) is 0.0 in Python; torch has 1.0"
