"""A use case that the package does not have, added from outside as CONTRIBUTING describes it.

Sound: the mask counts samples and the hidden states count frames.
"""

import pickle

import numpy as np
import pytest
import torch
import transformers as tf
from datasets import Dataset

from embedkit.encoders import Encoder, TensorEncoder


class SoundEncoder(TensorEncoder):
    """One vector per sound, an array of samples."""

    kind, reads, columns, unit = "audio", ("input_values",), ("audio",), "sound"
    pads = True

    def prepare(self, value, row):
        samples = np.asarray(value, np.float32)
        if samples.ndim != 1 or not len(samples):
            raise ValueError(f"sound {row} has shape {samples.shape}; give one channel of samples")
        made = self.processor(samples, sampling_rate=16_000, return_attention_mask=True)
        return {name: torch.tensor(np.array(values[0])) for name, values in made.items()}

    def examples(self):
        wave = np.sin(np.linspace(0, 300, 2000)) + np.sin(np.linspace(0, 7, 2000))
        return [wave[:900], wave]

    def collate(self, prepared):
        features = {name: [each[name].numpy() for each in prepared] for name in prepared[0]}
        return dict(self.processor.pad(features, return_tensors="pt"))

    def token_mask(self, hidden, inputs):
        mask = inputs["attention_mask"]
        return self.body._get_feature_vector_attention_mask(hidden.shape[1], mask).long()


@pytest.fixture(scope="module", params=["layer", "group"])
def model(request):
    """Give a tiny Wav2Vec2; normed over a group of samples, it lets padding into its frames."""
    torch.manual_seed(0)
    config = tf.Wav2Vec2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        conv_dim=(16, 16, 16), conv_stride=(5, 2, 2), conv_kernel=(10, 3, 3),
        num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2,
        feat_extract_norm=request.param, do_stable_layer_norm=request.param == "layer",
        mask_time_prob=0.0, initializer_range=0.4,
    )  # fmt: skip
    return tf.Wav2Vec2Model(config).eval()


@pytest.fixture(scope="module")
def processor():
    return tf.Wav2Vec2FeatureExtractor(return_attention_mask=True)


@pytest.fixture(scope="module")
def sounds():
    generator = np.random.default_rng(0)
    return [np.cumsum(generator.normal(size=size)) for size in (700, 2500, 1200, 2500, 4000)]


@pytest.mark.slow
def test_each_sound_has_the_vector_it_has_alone(model, processor, sounds):
    encoder = SoundEncoder(model, processor=processor)
    assert isinstance(encoder, Encoder)
    assert encoder.facts["equal_lengths"] is (model.config.feat_extract_norm == "group")
    by_hand = []
    for sound in sounds:
        inputs = processor(sound, sampling_rate=16_000, return_tensors="pt")
        with torch.no_grad():
            by_hand.append(model(inputs["input_values"]).last_hidden_state[0].mean(0).numpy())
    for size in (None, 1, 2):
        found = encoder.encode(sounds, batch_size=size)
        np.testing.assert_allclose(found, by_hand, rtol=0, atol=1e-5)


def test_sounds_share_a_batch_only_where_padding_changes_nothing(model, processor, sounds):
    encoder = SoundEncoder(model, processor=processor)
    shapes = []
    handle = model.register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append(tuple(kwargs["input_values"].shape)), with_kwargs=True
    )
    encoder.encode(sounds)
    handle.remove()
    together = model.config.feat_extract_norm == "layer"
    assert sorted(shapes) == (
        [(5, 4000)] if together else [(1, 700), (1, 1200), (1, 4000), (2, 2500)]
    )


@pytest.mark.slow
def test_a_new_encoder_has_all_that_the_others_have(model, processor, sounds, tmp_path):
    model.save_pretrained(tmp_path)
    settings = {"pooling": "max", "normalize": True, "layers": [1, 2]}
    encoder = SoundEncoder(tmp_path, processor=processor, **settings)
    assert f"SoundEncoder('{tmp_path}', dim=32, pooling='max', normalize=True" in repr(encoder)
    vectors = encoder.encode(iter(sounds))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(encoder)).encode(sounds), vectors)
    mapped = Dataset.from_dict({"audio": sounds}).map(encoder, batched=True, batch_size=3)
    np.testing.assert_allclose(np.array(mapped["embedding"]), vectors, atol=1e-5)
    with pytest.raises(ValueError, match=r"sound 1 has shape \(2, 2\); give one channel"):
        encoder.encode([sounds[0], np.zeros((2, 2))])
    with pytest.warns(UserWarning, match=r"1 of 2 rows cannot be read .*\(row 1\)") as caught:
        skipped = encoder.encode([sounds[0], []], on_error="skip")
    assert caught[0].filename == __file__
    assert np.isnan(skipped[1]).all() and np.isfinite(skipped[0]).all()
    with pytest.raises(ValueError, match="choose from max, mean, or pass a function"):
        SoundEncoder(model, processor=processor, pooling="cls")
