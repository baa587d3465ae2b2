"""What encoders do to the machine, and what the machine does to them."""

import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import transformers as tf
from datasets import Dataset

import embedkit as ek
from tests.conftest import picture, sentence

TEXTS = [sentence(int(n), np.random.default_rng(n)) for n in range(1, 41)]


def around(tiny, name="bert", kind=ek.TextEncoder):
    model = tf.AutoModel.from_pretrained(tiny(name)).eval()
    if kind is ek.ImageEncoder:
        processor = tf.AutoImageProcessor.from_pretrained(tiny(name), backend="pil")
        return model, kind(model, processor=processor)
    return model, kind(model, processor=tf.AutoTokenizer.from_pretrained(tiny(name)))


# Memory


def small_memory(model, rows: int) -> list[int]:
    """Make a model fail, as a GPU does, on more than so many rows; list what it was given."""
    given = []

    def refuse(module, args, kwargs):
        batch = next(iter(kwargs.values()))
        given.append(len(batch))
        if len(batch) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    model.register_forward_pre_hook(refuse, with_kwargs=True)
    return given


@pytest.mark.fault("memory")
@pytest.mark.parametrize("kind", ["texts", "words", "images"])
def test_a_batch_that_memory_has_no_room_for_is_halved(tiny, kind):
    if kind == "images":
        model, encoder = around(tiny, "vit", ek.ImageEncoder)
        inputs = [picture(n) for n in range(20)]
    else:
        cls = ek.TextEncoder if kind == "texts" else ek.WordEncoder
        model, encoder = around(tiny, "bert", cls)
        inputs = TEXTS[:20]
    expected = encoder.encode(inputs)
    given = small_memory(model, 3)
    with pytest.warns(UserWarning, match="too little memory for a batch of 20") as caught:
        found = encoder.encode(inputs, batch_size=20)
    assert len(caught) == 1
    assert given[:3] == [20, 10, 5] and max(given[3:]) <= 3
    same(found, expected)
    del given[:]
    same(encoder.encode(inputs, batch_size=20), expected)  # it remembers, and says nothing
    assert max(given) <= 3


def same(found, expected) -> None:
    found, expected = (getattr(each, "vectors", each) for each in (found, expected))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.fault("memory")
def test_one_row_that_memory_has_no_room_for_is_an_error(tiny):
    model, encoder = around(tiny)
    small_memory(model, 0)
    with pytest.raises(torch.OutOfMemoryError), pytest.warns(UserWarning, match="too little"):
        encoder.encode(TEXTS[:4])


@pytest.mark.fault("memory")
def test_another_error_is_not_taken_for_memory(tiny):
    model, encoder = around(tiny)

    def fail(*_):
        raise RuntimeError("shapes cannot be multiplied")

    model.register_forward_pre_hook(fail)
    with pytest.raises(ValueError, match="shapes cannot be multiplied"):
        encoder.encode(TEXTS[:4])


# Interruptions

INTERRUPTED = """
import signal, sys, threading, time
import numpy as np
import embedkit as ek
encoder = ek.TextEncoder("bundled/all-MiniLM-L6-v2", pooling="mean")
long = [" ".join(["the kettle boils"] * 300)] * 20_000
short = ["a kettle", "a novel"]
before = encoder.encode(short)
sent = []
def stop():
    sent.append(time.time())
    signal.raise_signal(signal.SIGINT)
threading.Timer(3, stop).start()
try:
    encoder.encode(long, progress=False)
    print("not interrupted")
except KeyboardInterrupt:
    waited = time.time() - sent[0]
    same = np.array_equal(before, encoder.encode(short))
    print(waited, same, threading.active_count())
"""


@pytest.mark.slow
@pytest.mark.fault("interruptions")
def test_ctrl_c_stops_soon_and_leaves_the_encoder_usable():
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True)
    waited, usable, _threads = done.stdout.split()
    assert usable == "True"
    assert float(waited) < 1


# What was found is left as it was


@pytest.mark.fault("settings of others")
def test_threads_dtypes_and_modes_are_left_as_they_were_found(tiny):
    model, encoder = around(tiny)
    model.train()
    model.encoder.layer[1].eval()  # a part that its owner has frozen
    before = [part.training for part in model.modules()]
    tokenizer = encoder.processor
    tokenizer.padding_side = "left"
    state = lambda: (  # noqa: E731
        torch.get_num_threads(),
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        tf.utils.logging.get_verbosity(),
        tokenizer.padding_side,
        tokenizer.model_max_length,
        {p.dtype for p in model.parameters()},
        {p.requires_grad for p in model.parameters()},
        [part.training for part in model.modules()],
    )
    found = state()
    encoder.encode(TEXTS[:5])
    ek.TextEncoder(tiny("bert"), dtype="bfloat16").encode(TEXTS[:2])
    with pytest.raises(TypeError):
        encoder.encode([None])
    assert state() == found
    assert [part.training for part in model.modules()] == before


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_the_raw_state_needs_nothing_of_the_config(tiny, name):
    model, _ = around(tiny, name, lambda *a, **k: None)
    before = model.config.to_dict()
    tokenizer = tf.AutoTokenizer.from_pretrained(tiny(name))
    raw = ek.TextEncoder(model, processor=tokenizer, pooling="last", final_norm=False)
    assert model.config.to_dict() == before
    body = model.get_encoder() if name == "t5" else model
    norm = body.final_layer_norm if name == "t5" else body.ln_f
    normed = ek.TextEncoder(tiny(name), pooling="last").encode(TEXTS[:4])
    with torch.no_grad():
        again = norm(torch.from_numpy(raw.encode(TEXTS[:4]))).numpy()
    np.testing.assert_allclose(again, normed, rtol=0, atol=1e-4)
    assert not norm._forward_hooks


# Threads and processes


@pytest.mark.slow
@pytest.mark.fault("threads")
@pytest.mark.parametrize("training", [False, True])
def test_one_encoder_from_eight_threads(tiny, training):
    model, texts = around(tiny)
    words = ek.WordEncoder(model, processor=texts.processor)
    seer = ek.ImageEncoder(tiny("vit"))
    pictures = [picture(n) for n in range(6)]
    expected = texts.encode(TEXTS), words.encode(TEXTS).vectors, seer.encode(pictures)
    if training:
        model.train()  # dropout would show

    def work(number):
        for _ in range(3):
            order = np.random.default_rng(number).permutation(len(TEXTS))
            same(texts.encode([TEXTS[i] for i in order], batch_size=3), expected[0][order])
            same(words.encode(TEXTS, batch_size=5), expected[1])
            same(seer.encode(pictures, batch_size=2), expected[2])
        return number

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == list(range(8))
    assert all(part.training is training for part in model.modules())


def _encode_elsewhere(encoder, texts):
    return encoder.encode(texts)


@pytest.mark.slow
@pytest.mark.fault("processes")
def test_spawned_processes_give_the_same_vectors(tiny):
    encoder = ek.TextEncoder(tiny("bert"))
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        found = pool.starmap(_encode_elsewhere, [(encoder, TEXTS[:20]), (encoder, TEXTS[20:])])
    same(np.concatenate(found), encoder.encode(TEXTS))


FORKED = """
import os, sys
import torch
import embedkit as ek
torch.set_num_threads(2)
encoder = ek.TextEncoder("bundled/all-MiniLM-L6-v2")
encoder.encode(["a kettle " * 100] * 20)  # now there are threads that a child will lack
child = os.fork()
if child == 0:
    try:
        encoder.encode(["a kettle " * 100] * 20)
    except RuntimeError as error:
        print(error, flush=True)
    fresh = ek.TextEncoder("bundled/all-MiniLM-L6-v2").encode(["a kettle " * 100] * 20)
    print(fresh.shape, flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""


@pytest.mark.slow
@pytest.mark.fault("processes")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork processes")
def test_a_model_used_in_a_forked_process_is_an_error_and_no_hang():
    env = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=60, env=env
    )
    error, fresh = done.stdout.splitlines()
    assert "was forked from the one that loaded the model" in error
    assert "make the encoder in this process" in error
    assert fresh == "(20, 384)"


@pytest.mark.slow
@pytest.mark.fault("processes")
@pytest.mark.parametrize("loaded", [False, True])
def test_map_in_several_processes_gives_the_same_vectors(tiny, loaded):
    encoder = around(tiny)[1] if loaded else ek.TextEncoder(tiny("bert"))
    data = Dataset.from_dict({"text": TEXTS})
    mapped = data.map(encoder, batched=True, batch_size=10, num_proc=2)
    same(np.array(mapped.data.column("embedding").to_pylist()), encoder.encode(TEXTS))


@pytest.mark.slow
@pytest.mark.fault("memory")
def test_memory_stays_flat_over_many_texts():
    """Twice the texts take no more memory; a million are in `benchmarks/results/scale-*.md`."""
    code = (
        "import sys, resource, tempfile, warnings; import numpy as np; import embedkit as ek; "
        "from tests.conftest import BUILDERS; warnings.simplefilter('ignore'); "
        "model, tokenizer = BUILDERS['bert'](); "
        "encoder = ek.TextEncoder(model.eval(), processor=tokenizer); "
        "file = tempfile.TemporaryFile(); n = int(sys.argv[1]); "
        "out = np.memmap(file, np.float32, 'w+', shape=(n, encoder.dim)); "
        "encoder.encode(['the kettle boils'] * n, out=out, progress=False); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    peaks = [
        int(subprocess.run([sys.executable, "-c", code, str(n)], capture_output=True, text=True,
                           check=True).stdout.split()[-1])
        for n in (10_000, 20_000)
    ]  # fmt: skip
    assert peaks[1] < 1.1 * peaks[0]
