"""Maps of a driver that is forked: the child gets separate workers, and the maps of both processes go on."""

from __future__ import annotations

import textwrap

import pytest
from pool_processes import assert_nothing_is_left, descendants, program

PATIENCE = 60.0

MAPS = """
import multiprocessing, signal, threading

A, x = np.arange(48.0).reshape(12, 4), np.ones(4)
context = multiprocessing.get_context("fork")

def mapped(f, executor=None):
    y = polarmap.coded_map(f, A, blocks=6, tasks=8, timeout=60, executor=executor)
    assert np.allclose(y.concatenate(), A @ x)

def product(block):
    return block @ x

def nap(block):
    time.sleep(1.0)
    return block @ x

def map_in_a_child():
    child = context.Process(target=mapped, args=[product])
    child.start()
    child.join(60)
    assert child.exitcode == 0

def at_work(then):
    signal.signal(signal.SIGALRM, lambda *_: then())
    signal.setitimer(signal.ITIMER_REAL, 0.4)
    mapped(nap)

def fork():
    global child
    child = os.fork()

def fork_and_map():
    fork()
    if not child:
        mapped(product)
        os._exit(7)

def fork_and_leave():
    fork()
    if not child:
        raise SystemExit(7)

mapped(product)
"""
SCENES = {
    "between two maps": """
        find = lambda: set(polarmap.hedged_map(lambda block: float(os.getpid()), [x] * 4))
        mine = find()
        pool = polarmap.Pool()
        mapped(product, executor=pool)
        if not (child := os.fork()):
            mapped(product)
            mapped(product, executor=pool)
            assert not find() & mine
            sys.exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert find() & mine
        mapped(product, executor=pool)
        pool.close()
    """,
    "while another thread maps": """
        other = threading.Thread(target=mapped, args=[nap])
        other.start()
        time.sleep(0.4)
        map_in_a_child()
        other.join()
    """,
    "in a map, to map itself": """
        at_work(fork_and_map)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    """,
    "in a map, which it leaves": """
        at_work(fork_and_leave)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    """,
    "in a map, with which it would go on": """
        child = -1
        try:
            at_work(fork)
        except polarmap.errors.ExecutorError as error:
            assert not child and "forked while a map ran" in str(error), (child, error)
            mapped(product)
            sys.exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    """,
}


@pytest.mark.parametrize("name", SCENES)
def test_parent_and_child_both_run_maps(name: str) -> None:
    scene = f"{MAPS}{textwrap.dedent(SCENES[name])}\nmapped(product)"
    with program(f"{scene}\nprint('right', flush=True)\ntime.sleep(600)\n") as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "right\n"
        processes = descendants(driver.pid)
        driver.terminate()
        driver.wait(PATIENCE)
    assert_nothing_is_left(driver.pid, processes)
