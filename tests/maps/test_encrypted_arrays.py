"""Encrypted arrays in storage: they cannot be read without the key, and every change is detected."""

from __future__ import annotations

import pickle
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import pytest
from array_data import MIB, damage, losses, objects, random_array, write_manifest
from plain import process_pool

import polarmap
from polarmap.arrays import RawObjects, Stored
from polarmap.arrays.array import open_without_key
from polarmap.arrays.manifest import get_manifest_key
from polarmap.convex import LinearSVC
from polarmap.errors import CodeError, ExecutorError, NotDecodableError, StorageError
from polarmap.glm import LogisticRegression
from polarmap.testing import ReplayExecutor

KEY = bytes(range(32))
NAME = "POLARMAP_TEST_KEY"
OPTIONS: dict[str, Any] = {"blocks": 4, "tasks": 6, "name": "a", "key": KEY}
A = random_array((24, 40))


@pytest.fixture(autouse=True)
def key_in_the_environment(monkeypatch):
    monkeypatch.setenv(NAME, KEY.hex())


product = partial(np.sum, axis=1)  # workers need to import nothing but numpy to unpickle it


def crc_alike(data, wanted):
    """Return `data` with its last 4 bytes replaced so that its CRC-32 is `wanted`.

    A checksum can be forged like this, because it is not a signature.
    """
    register = wanted ^ 0xFFFFFFFF
    for _ in range(32):  # run the shift register of the CRC backwards
        register = (register ^ 0xEDB88320) << 1 | 1 if register >> 31 else register << 1
    return data[:-4] + (register ^ zlib.crc32(data[:-4]) ^ 0xFFFFFFFF).to_bytes(4, "little")


@pytest.fixture(scope="module")
def pool():
    """Yield a pool of workers on this machine, which must not cache blocks of deleted arrays."""
    with polarmap.Pool(workers=2) as pool:
        yield pool


def failed(report):
    return [task.index for task in report.tasks if task.failures]


def forge(store, part):
    """Change the stored bytes of a part without changing its checksum."""
    data = bytearray(store.get(part.key))
    data[20] ^= 1
    forged = crc_alike(bytes(data), part.crc32)
    assert zlib.crc32(forged) == part.crc32
    store.put(part.key, forged)


# --- arrays in storage ---------------------------------------------------------------------------


@pytest.mark.every_store
def test_stored_bytes_reveal_no_data_and_damage_is_repaired(store):
    coded = polarmap.encode(A, storage=store, **OPTIONS)
    assert coded.key == KEY
    assert coded.zarr_path is None
    plain = [polarmap.codes.PolarCode(6, 4).encode(A.reshape(4, -1))[block].tobytes() for block in range(6)]
    for data in objects(store).values():
        assert KEY not in data
        assert KEY.hex().encode() not in data
        assert not any(row[at : at + 8] in data for row in plain for at in range(0, len(row), 8))
    again = polarmap.open_coded("a", store, key=f"env:{NAME}")
    for array in (coded, again):
        assert array.check().ok
        np.testing.assert_array_equal(array[:], A)
        np.testing.assert_array_equal(array[7:19, 3], A[7:19, 3])
    damage(store, coded.block_segments(1)[0], "missing")
    forge(store, coded.block_segments(5)[0])
    audit = again.check()
    assert [(array.block, array.kind) for array in audit.damaged] == [(1, "missing"), (5, "forged")]
    np.testing.assert_allclose(again[:], A, rtol=1e-12, atol=1e-12)
    assert again.repair().damaged_blocks == [1, 5]
    assert again.check().ok
    assert polarmap.open_coded("a", store, key=KEY).check().ok
    np.testing.assert_allclose(again[:], A, rtol=1e-12, atol=1e-12)
    again.delete()
    assert store.keys("polarmap/") == []


def test_repair_uses_the_stored_array_of_the_moment(store):
    # The array is encoded again with the same key after it was opened.
    opened = polarmap.encode(A, storage=store, **OPTIONS)
    anew = polarmap.encode(2 * A, storage=store, overwrite=True, **OPTIONS)
    damage(store, anew.block_segments(1)[0], "missing")
    assert [damage.kind for damage in opened.repair().damaged] == ["missing"]
    np.testing.assert_allclose(opened[:], 2 * A, rtol=1e-12, atol=1e-12)


def test_missing_key_variable_raises_a_clear_error(store, monkeypatch):
    named = OPTIONS | {"key": f"env:{NAME}"}
    coded, plain = polarmap.encode(A, storage=store, **named), polarmap.encode(A, name="b", storage=store)
    polarmap.encode(A, storage=store, overwrite=True, **named | {"name": "b"})
    with pytest.raises(StorageError, match="is encrypted: pass its key"):
        plain.repair()
    monkeypatch.delenv(NAME)
    for read in (lambda: coded[3], coded.check, coded.repair):
        with pytest.raises(
            StorageError, match=f"the environment variable '{NAME}' of key=.* is not set here"
        ):
            read()
    with pytest.raises(CodeError, match=f"the environment variable '{NAME}' of key=.* is not set here"):
        polarmap.coded_map(product, coded, executor=ReplayExecutor())


def test_stripes_are_encrypted_one_by_one(store):
    array = random_array((64, 4_000))
    coded = polarmap.encode(array, storage=store, **{**OPTIONS, "memory": MIB})
    stripes = len(coded.block_segments(0))
    assert stripes > 3
    first = min(len(store.get(part.key)) for part in coded.block_segments(0))
    assert first == coded.block_segments(0)[-1].size + 28
    assert coded.stored_bytes == array.nbytes * 6 // 4 + 6 * stripes * 28
    lost = losses(coded.code, 2)
    for index in lost:
        damage(store, coded.block_segments(index)[1], "corrupt")
    np.testing.assert_allclose(coded[5:40, 7:9], array[5:40, 7:9], rtol=1e-11, atol=1e-11)
    assert coded.repair().damaged_blocks == list(lost)
    assert coded.check().ok


# --- manifests -----------------------------------------------------------------------------------


def test_wrong_keys_raise_one_clear_error(store):
    polarmap.encode(A, storage=store, **OPTIONS)
    cases = {
        "is encrypted: pass its key, open_coded": None,
        "cannot be verified: the 32 bytes that were passed: this is not the key": bytes(32),
    }
    for message, key in cases.items():
        with pytest.raises(StorageError, match=message) as caught:
            polarmap.open_coded("a", store, key=key)
        assert KEY.hex() not in str(caught.value)
    with pytest.raises(CodeError, match="'NOT_SET_ANYWHERE' of key='env:NOT_SET_ANYWHERE' is not set here"):
        polarmap.open_coded("a", store, key="env:NOT_SET_ANYWHERE")
    with pytest.raises(CodeError, match="key must be 'env:NAME' or 'file:PATH'"):
        polarmap.open_coded("a", store, key="password")
    assert polarmap.arrays.list_coded(store) == ["a"]


def test_key_is_refused_for_an_unencrypted_array(store):
    polarmap.encode(A, storage=store, **{**OPTIONS, "key": None})
    with pytest.raises(StorageError, match="describes an array that is not encrypted: leave key out"):
        polarmap.open_coded("a", store, key=KEY)


@pytest.mark.parametrize(
    "change",
    [
        lambda array: array.update(dtype="<i8", parity_dtype="<i8"),
        lambda array: array.update(shape=[23, 40], filler_rows=1),
        lambda array: array.update(shape=[24, 20, 2]),
        lambda array: array["blocks"].insert(0, array["blocks"].pop(1)),
        lambda array: array["code"].update(seed=1),
        lambda array: array["blocks"][0][0].update(crc32=1),
    ],
)
def test_changed_manifest_is_refused(store, change, monkeypatch):
    # The signature must be checked before any content of the manifest is used.
    polarmap.encode(A, storage=store, **OPTIONS)
    write_manifest(store, change)
    monkeypatch.setattr("polarmap.arrays.manifest.deserialize_code", pytest.fail)
    with pytest.raises(StorageError, match="was not written with this key, or has been changed"):
        polarmap.open_coded("a", store, key=KEY)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda array: array["encryption"].update(cipher="ROT13"), "the cipher 'ROT13' is not AES-256-GCM"),
        (lambda array: array["encryption"].update(salt="x"), "non-hexadecimal"),
        (lambda array: array.update(encryption=None), "is inconsistent: TypeError"),
        (lambda array: array.update(zarr=array.pop("view")), "an encrypted array cannot have a Zarr array"),
    ],
)
def test_invalid_manifest_is_refused_without_a_key(store, change, message):
    # The command line opens arrays without a key, so it cannot check the tag.
    polarmap.encode(A, storage=store, **OPTIONS)
    view = {"path": "polarmap/coded/a/x/array.zarr", "chunk_shape": [6, 40], "metadata": []}
    write_manifest(store, lambda array: change(array.update(view=view) or array))
    with pytest.raises(StorageError, match=message):
        open_without_key("a", store)


def test_an_array_cannot_be_passed_off_as_another(store):
    for name in ("a", "b"):
        polarmap.encode(A, storage=store, **{**OPTIONS, "name": name})
    store.put(get_manifest_key("b"), store.get(get_manifest_key("a")))
    with pytest.raises(StorageError, match="describes the coded array 'a'"):
        polarmap.open_coded("b", store, key=KEY)
    write_manifest(store, lambda array: array.update(name="b"), "b")
    with pytest.raises(StorageError, match="was not written with this key, or has been changed"):
        polarmap.open_coded("b", store, key=KEY)


# --- maps ----------------------------------------------------------------------------------------


def swapped(store, coded):
    """Swap two stored blocks, which are both valid parts, and return their indices."""
    first_key, second_key = coded.block_segments(0)[0].key, coded.block_segments(3)[0].key
    first, second = store.get(first_key), store.get(second_key)
    store.put(first_key, second)
    store.put(second_key, first)
    return [0, 3]


def replayed(store, coded):
    """Encode the array again, restore the old bytes of two blocks, and return the indices of these blocks."""
    before = [store.get(coded.block_segments(index)[0].key) for index in (0, 5)]
    newer = polarmap.encode(2 * A, storage=store, overwrite=True, **OPTIONS)
    for index, data in zip((0, 5), before):
        store.put(newer.block_segments(index)[0].key, data)
    return [0, 5]


def forged(store, coded):
    forge(store, coded.block_segments(2)[0])
    return [2]


def unharmed(store, coded):
    return []


@pytest.mark.parametrize("tamper", [unharmed, swapped, replayed, forged])
def test_changed_parts_are_erasures_and_are_named(store, tamper):
    coded = polarmap.encode(A, storage=store, **OPTIONS)
    bad = tamper(store, coded)
    scale = 2 if tamper is replayed else 1
    coded = polarmap.open_coded("a", store, key=f"env:{NAME}")
    with ThreadPoolExecutor(6) as pool:
        y = polarmap.coded_map(product, coded, executor=pool, verify=False, retries=0)
    np.testing.assert_allclose(y.concatenate(), scale * A.sum(axis=1), rtol=1e-10, atol=1e-10)
    assert coded.check().damaged_blocks == bad
    used = {task.index for task in y.report.tasks if task.state in ("arrived", "surplus")}
    assert not used & set(bad)
    assert set(failed(y.report)) <= set(bad)
    coded.repair()
    np.testing.assert_allclose(coded[:], scale * A, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["threads", "processes", "here"])
def test_workers_read_and_verify_parts(store, pool, kind):
    A = random_array((400, 1_000))  # large enough that workers cache the blocks in memory
    coded = polarmap.encode(A, storage=store, **{**OPTIONS, "key": f"env:{NAME}"})
    [first, second] = swapped(store, coded)
    pools = {
        "threads": ThreadPoolExecutor,
        "processes": partial(process_pool, **{NAME: KEY.hex()}),
        "here": lambda workers: nullcontext(pool),
    }
    with pools[kind](2) as executor:
        n_failed = 0
        # The second failing map finds the cached blocks. A map may end before a changed block is reported.
        while n_failed < 2:
            y = polarmap.coded_map(product, coded, executor=executor, retries=0)
            np.testing.assert_allclose(y.concatenate(), A.sum(axis=1), rtol=1e-9, atol=1e-9)
            n_failed, report = n_failed + bool(failed(y.report)), str(y.report)
        assert set(failed(y.report)) <= {first, second}
        assert "is not what was encrypted: it has been changed or replaced" in report


def test_array_with_all_parts_changed_raises_one_error(store, pool):
    coded = polarmap.encode(A, storage=store, **OPTIONS)
    for index in range(6):
        forge(store, coded.block_segments(index)[0])
    assert {damage.kind for damage in coded.check().damaged} == {"forged"}
    with pytest.raises(NotDecodableError, match="it has been changed or replaced"):
        polarmap.coded_map(product, coded, executor=pool)
    with pytest.raises(NotDecodableError):
        coded.repair()
    with pytest.raises(NotDecodableError):
        coded[:]


def test_workers_with_another_key_raise_one_clear_error(store):
    coded = polarmap.encode(A, storage=store, **{**OPTIONS, "key": f"env:{NAME}"})
    raises_wrong_key = pytest.raises(NotDecodableError, match="this is not the key that was used to encrypt")
    with process_pool(2, **{NAME: bytes(32).hex()}) as pool, raises_wrong_key:
        polarmap.coded_map(product, coded, executor=pool, retries=0)


def test_stored_results_are_encrypted_like_the_data(store):
    B = random_array((40, 7), seed=1)
    coded = polarmap.encode(A, storage=store, **OPTIONS)
    late = ReplayExecutor({1: 100.0, 4: 100.0})
    first = polarmap.coded_map(lambda block: block @ B, coded, out=Stored("AB"), executor=late)
    assert first.array.key == KEY
    rows = (A @ B).reshape(-1).tobytes()
    for data in objects(store).values():
        assert not any(rows[at : at + 8] in data for at in range(0, len(rows), 8))
    reopened = polarmap.open_coded("AB", store, key=KEY)
    np.testing.assert_allclose(reopened[:], A @ B, rtol=1e-10, atol=1e-10)
    reopened.repair()
    assert reopened.check().ok
    assert reopened.zarr_path is None
    second = polarmap.coded_map(lambda block: block @ B.T, first, out=Stored("ABB"), executor=late)
    np.testing.assert_allclose(second.concatenate(), A @ B @ B.T, rtol=1e-10, atol=1e-10)
    with pytest.raises(StorageError, match="is encrypted: pass its key"):
        polarmap.open_coded("ABB", store)


def test_long_results_are_encrypted_in_segments(store, pool, monkeypatch):
    monkeypatch.setattr("polarmap.arrays.stored_result.MAX_STRIPE_BYTES", 8 * 6 * 50)
    y = polarmap.coded_map(np.negative, A, blocks=4, tasks=6, out=Stored("y", store), executor=pool, key=KEY)
    parts = y.array.block_segments(min(set(range(4)) - set(y.report.recovered)))
    assert [part.size for part in parts] == [400] * 4 + [320]
    assert [part.offset for part in parts] == [0, 428, 856, 1284, 1712]
    damage(store, parts[2], "corrupt")
    np.testing.assert_allclose(y.array[:], -A, rtol=1e-12, atol=1e-12)
    y.array.repair()
    assert y.array.check().ok


@pytest.mark.parametrize("kind", ["processes", "here"])
def test_workers_encode_and_encrypt(store, pool, tmp_path, kind):
    A = random_array((48, 4_000))
    np.save(tmp_path / "A.npy", A)
    with process_pool(2) if kind == "processes" else nullcontext(pool) as executor:
        coded = polarmap.encode(
            str(tmp_path / "A.npy"), storage=store, executor=executor, memory=MIB, **OPTIONS
        )
    assert len(coded.block_segments(0)) > 1
    np.testing.assert_array_equal(coded[:], A)
    assert coded.check().ok
    damage(store, coded.block_segments(2)[0], "missing")
    coded.repair()
    np.testing.assert_allclose(polarmap.open_coded("a", store, key=KEY)[:], A, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("server", ["s3"], indirect=True)
def test_functions_of_lithops_find_the_key_in_their_environment(config):
    coded = polarmap.encode(A, storage=config, **{**OPTIONS, "key": f"env:{NAME}"})
    store = coded.store
    swapped(store, coded)
    y = polarmap.coded_map(product, coded, retries=0)
    np.testing.assert_allclose(y.concatenate(), A.sum(axis=1), rtol=1e-10, atol=1e-10)
    assert not {0, 3} & {task.index for task in y.report.tasks if task.state in ("arrived", "surplus")}
    with pytest.raises(ExecutorError, match=r"key= is the key itself, .* pass key='env:NAME'"):
        polarmap.coded_map(product, polarmap.open_coded("a", config, key=KEY))


def test_array_in_f_is_not_pickled_with_the_bytes_of_its_key(store, pool):
    coded = polarmap.encode(A, storage=store, **OPTIONS)
    with pytest.raises(
        CodeError, match=r"cannot be pickled, .* the bytes of its key: open it with key='env:NAME'"
    ):
        polarmap.coded_map(lambda block: block @ coded[:40].T, A, executor=pool)
    with pytest.raises(TypeError, match="cannot be pickled, because it was opened with the bytes of its key"):
        pickle.dumps(coded.coded_blocks())
    named = polarmap.open_coded("a", store, key=f"env:{NAME}")
    y = polarmap.coded_map(lambda block: block @ named[:4].T, A, executor=pool, blocks=4)
    np.testing.assert_allclose(y.concatenate(), A @ A[:4].T, rtol=1e-10, atol=1e-10)


# --- data that would be stored unencrypted -------------------------------------------------------


def test_raw_objects_are_not_encrypted(store):
    store.put("mine/0", A.tobytes())
    with pytest.raises(CodeError, match="encode does not rewrite these objects"):
        polarmap.encode(RawObjects(["mine/0"], A.shape, A.dtype, 24), storage=store, **OPTIONS)
    assert store.keys("polarmap/") == []


def test_parts_too_large_for_the_cipher_are_refused(store, monkeypatch):
    monkeypatch.setattr("polarmap.executors.encryption_keys.MAX_PLAINTEXT_BYTES", 1_000)
    with pytest.raises(
        CodeError, match=r"a part with this memory= has 1920 bytes, and at most 1000 can .* smaller memory="
    ):
        polarmap.encode(A, storage=store, **OPTIONS)


def test_functions_that_would_store_data_unencrypted_are_refused(store):
    coded = polarmap.encode(A, storage=store, **OPTIONS)
    results = polarmap.coded_map(np.negative, coded, out=Stored("y"), executor=ReplayExecutor())
    for verb in (
        lambda: polarmap.hedged_map(np.sum, coded),
        lambda: polarmap.hedged_map(np.sum, results),
        lambda: polarmap.Executor(ReplayExecutor()).map(np.add, range(24), coded),
        lambda: polarmap.Executor(ReplayExecutor()).map(np.sum, results),
        lambda: polarmap.encode(results, name="b", storage=store),
        lambda: polarmap.coded_sum(np.sum, coded, tasks=4),
        lambda: polarmap.coded_matmul(coded, A.T),
        lambda: polarmap.coded_matmul(A.T, coded),
        lambda: polarmap.coded_gram(coded),
        lambda: polarmap.encode(coded, name="b", storage=store),
        lambda: LogisticRegression().fit(coded, A[:, 0] > 0),
        lambda: LogisticRegression().fit(A, coded),
        lambda: LinearSVC().fit(coded, A[:, 0] > 0),
    ):
        with pytest.raises(CodeError, match="is an encrypted coded array, and would be stored as it is"):
            verb()


def test_an_operator_needs_both_sides_encrypted(store):
    rows = polarmap.encode(A, storage=store, **OPTIONS)
    columns = polarmap.encode(A.T, storage=store, **{**OPTIONS, "name": "T"})
    with ThreadPoolExecutor(4) as pool:
        with polarmap.CodedOperator(rows, executor=pool) as operator:
            np.testing.assert_allclose(operator @ np.ones(40), A.sum(axis=1), rtol=1e-10, atol=1e-10)
            with pytest.raises(
                CodeError, match="would be stored as it is here: pass the columns as transpose="
            ):
                operator.T @ np.ones(24)
        with polarmap.CodedOperator(rows, transpose=columns, executor=pool) as operator:
            np.testing.assert_allclose(operator.T @ np.ones(24), A.sum(0), rtol=1e-10, atol=1e-10)
