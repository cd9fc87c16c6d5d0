"""Further questions: how much is computed for them, that the answers stay the same, and when all is forgotten."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from prismatic.models.media import EncodedClip
from prismatic.models.memory import Memory, common_length

QUESTIONS = ("What happens?", "A red circle moves to the left. What happens to it then, yes or no?", "blue")


def clip(seed: int, T: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (T, 20, 24, 3), dtype=np.uint8)


def prompt(vlm, text: str = QUESTIONS[0]) -> str:
    builder = vlm.get_prompt_builder()
    builder.add_turn("human", text)
    return builder.get_prompt()


class Work:
    """Counts what a model computes: frames through the vision backbone, positions through the LLM."""

    def __init__(self, vlm) -> None:
        self.frames = self.positions = 0
        vlm.vision_backbone.register_forward_pre_hook(self._vision)
        vlm.llm_backbone.layers[0].register_forward_pre_hook(self._llm)

    def _vision(self, module, args) -> None:
        self.frames += len(args[0])

    def _llm(self, module, args) -> None:
        self.positions += args[0].shape[0] * args[0].shape[1]

    def done(self) -> tuple[int, int]:
        """(frames, positions) since the last call."""
        counted, self.frames, self.positions = (self.frames, self.positions), 0, 0
        return counted


def forgetful(vlm):
    """A copy that remembers nothing."""
    other = copy.deepcopy(vlm)
    other.memory.limit_bytes = 0
    return other


@pytest.mark.parametrize("layout", ["after-bos", "inline"])
def test_further_questions_compute_their_own_text_alone(make_vlm, family, layout):
    vlm = make_vlm(family, layout=layout)
    plain = forgetful(vlm)
    work, frames = Work(vlm), clip(0)
    S = len(vlm.llm_backbone.tokenizer(prompt(vlm))["input_ids"]) + 8
    for turn, text in enumerate(QUESTIONS * 2):
        expected = plain.generate(frames, prompt(vlm, text), max_new_tokens=5, eos_token_id=-1)
        assert vlm.generate(frames, prompt(vlm, text), max_new_tokens=5, eos_token_id=-1) == expected
        looked, positions = work.done()
        assert looked == (2 if turn == 0 else 0)
        if turn == 3:  # the first question again, after others
            assert positions < S - 8 + 5
    choices = ["red", "blue square"]
    assert vlm.score_choices(frames, prompt(vlm), choices) == pytest.approx(
        plain.score_choices(frames, prompt(vlm), choices), abs=1e-5
    )
    assert work.done()[0] == 0


def test_a_conversation_goes_on_where_it_ended(make_vlm):
    vlm = make_vlm(template="vicuna-v15")
    plain, work = forgetful(vlm), Work(vlm)
    builder = vlm.get_prompt_builder()
    for text in QUESTIONS:
        said = builder.get_potential_prompt(text)
        answer = vlm.generate(clip(0), said, max_new_tokens=6)
        assert answer == plain.generate(clip(0), said, max_new_tokens=6)
        builder.add_turn("human", text)
        builder.add_turn("gpt", answer)
        _, positions = work.done()
    whole = len(vlm.llm_backbone.tokenizer(said)["input_ids"]) + 8
    assert positions < whole - 30, "the turns before are not computed again"


@pytest.mark.parametrize("beams", [1, 3])
def test_a_batch_computes_what_it_shares_once(make_vlm, family, beams):
    vlm = make_vlm(family)
    plain, work = forgetful(vlm), Work(vlm)
    frames = [clip(0), clip(1), clip(0), None, clip(0), [clip(1), clip(0)]]
    prompts = [prompt(vlm, text) for text in (*QUESTIONS, *QUESTIONS)]
    kwargs = {"max_new_tokens": 1, "num_beams": beams}
    expected = [plain.generate(f, p, **kwargs) for f, p in zip(frames, prompts, strict=True)]
    assert vlm.generate_batch(frames, prompts, **kwargs) == expected
    assert work.done()[0] == 4
    plain_work = Work(plain)
    longer = {**kwargs, "max_new_tokens": 6}
    expected = [plain.generate(f, p, **longer) for f, p in zip(frames, prompts, strict=True)]
    assert vlm.generate_batch(frames, prompts, **longer) == expected
    assert work.done()[0] == 0 and plain_work.done()[0] == 12
    assert plain.generate_batch(frames, prompts, **longer) == expected, "and without a memory between calls"


def test_a_batch_about_one_video_runs_it_through_the_llm_once(make_vlm):
    vlm = make_vlm(num_frames=16)
    work, frames = Work(vlm), clip(0, 16)
    prompts = [prompt(vlm, text) for text in QUESTIONS * 2]
    vlm.memory.limit_bytes = 0
    together = vlm.generate_batch(vlm.encode_clips(frames) * 6, prompts, max_new_tokens=1)
    _, positions = work.done()
    longest = max(len(vlm.llm_backbone.tokenizer(p)["input_ids"]) for p in prompts)
    assert positions <= 64 + 6 * longest, "64 visual tokens once, and six questions as long as the longest"
    assert together == [vlm.generate(frames, p, max_new_tokens=1) for p in prompts]


def _step(vlm) -> None:
    parameter = vlm.llm_backbone.layers[0].mlp.up_proj.weight
    parameter.requires_grad_(True)
    parameter.grad = torch.ones_like(parameter)
    torch.optim.AdamW([parameter], lr=0.3).step()


def _data(vlm) -> None:
    vlm.projector.projector[0].weight.data.mul_(-2.0)


def _load(vlm) -> None:
    state = {k: v.clone().neg() if "vision" in k and v.ndim > 1 else v for k, v in vlm.state_dict().items()}
    vlm.load_state_dict(state)


def _dtype(vlm) -> None:
    vlm.to(dtype=torch.bfloat16)
    vlm.to(dtype=torch.float32)


def _replace(vlm) -> None:
    weight = vlm.llm_backbone.llm.lm_head.weight
    vlm.llm_backbone.llm.lm_head.weight = torch.nn.Parameter(weight.detach().flip(0))


@pytest.mark.parametrize("change", [_step, _data, _load, _dtype, _replace])
@pytest.mark.parametrize("encoded", [False, True])
def test_other_weights_are_noticed(make_vlm, change, encoded):
    vlm = make_vlm()
    frames = vlm.encode_clips(clip(0)) if encoded else clip(0)
    before = vlm.score_choices(frames, prompt(vlm), ["red", "blue square", "1"])
    vlm.generate(frames, prompt(vlm), max_new_tokens=3)
    change(vlm)
    expected = forgetful(vlm).score_choices(clip(0), prompt(vlm), ["red", "blue square", "1"])
    work = Work(vlm)
    now = vlm.score_choices(frames, prompt(vlm), ["red", "blue square", "1"])
    assert now == pytest.approx(expected, abs=1e-6) and now != pytest.approx(before, abs=1e-6)
    assert work.done()[0] == 2
    again = vlm.score_choices(frames, prompt(vlm), ["red", "blue square", "1"])
    assert again == pytest.approx(expected, abs=1e-6) and work.done()[0] == 0


def test_adapters_switched_off_are_noticed(make_vlm):
    peft = pytest.importorskip("peft")
    vlm = make_vlm()
    vlm.llm_backbone.llm = peft.get_peft_model(
        vlm.llm_backbone.llm, peft.LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    )
    choices = ["red", "blue square", "1"]
    on = vlm.score_choices(clip(0), prompt(vlm), choices)
    with vlm.llm_backbone.llm.disable_adapter():
        off = vlm.score_choices(clip(0), prompt(vlm), choices)
        assert off == pytest.approx(forgetful(vlm).score_choices(clip(0), prompt(vlm), choices), abs=1e-6)
    assert off != pytest.approx(on, abs=1e-6)
    assert vlm.score_choices(clip(0), prompt(vlm), choices) == pytest.approx(on, abs=1e-6)


def test_training_forgets(make_vlm):
    vlm = make_vlm()
    vlm.generate(clip(0), prompt(vlm), max_new_tokens=2)
    assert vlm.memory.nbytes > 0
    vlm.train()
    assert vlm.memory.nbytes == 0
    vlm.generate(clip(0), prompt(vlm), max_new_tokens=2)
    assert vlm.training and vlm.memory.nbytes == 0


def test_another_picture_in_the_same_place_is_another(make_vlm, tmp_path):
    import os

    vlm = make_vlm()
    work, path = Work(vlm), tmp_path / "a.png"
    pixels = clip(0)[0].copy()
    for value in (0, 100):
        pixels[:] = value
        Image.fromarray(pixels).save(path)
        os.utime(path, (1e9, 1e9))
        image = Image.fromarray(pixels)
        for form in (path, str(path), image, pixels, torch.from_numpy(pixels)):
            (one,) = vlm.encode_clips(form)
            torch.testing.assert_close(one.tokens, forgetful(vlm).encode_clips(image.copy())[0].tokens)
    work.done()
    vlm.encode_clips(pixels)
    assert work.done()[0] == 0
    folder = tmp_path / "frames"
    folder.mkdir()
    for i in range(3):
        Image.fromarray(clip(i)[0]).save(folder / f"{i}.png")
    old = {p: (p.stat().st_atime, p.stat().st_mtime) for p in folder.iterdir()}
    first = vlm.encode_clips(folder)[0].tokens
    Image.fromarray(clip(7)[0]).save(folder / "0.png")
    for p, times in old.items():
        os.utime(p, times)
    assert (vlm.encode_clips(folder)[0].tokens - first).abs().max() > 1e-3
    vlm.num_frames = 3
    assert len(vlm.encode_clips(folder)[0].tokens) == 12


def test_palette_pictures_differ_by_their_palette(make_vlm):
    vlm = make_vlm()
    picture = Image.fromarray(clip(0)[0][..., 0]).convert("P")
    picture.putpalette([i for v in range(256) for i in (v, 0, 0)])
    red = vlm.encode_clips(picture)[0].tokens
    picture.putpalette([i for v in range(256) for i in (0, 0, v)])
    assert (vlm.encode_clips(picture)[0].tokens - red).abs().max() > 1e-3


def test_the_limit_holds(make_vlm):
    vlm = make_vlm()
    vlm.generate(clip(0), prompt(vlm), max_new_tokens=2)
    one = vlm.memory.nbytes
    vlm.memory.limit_bytes = 2 * one
    for seed in range(30):
        vlm.generate(clip(seed), prompt(vlm), max_new_tokens=2)
        assert one <= vlm.memory.nbytes <= 2 * one
    work = Work(vlm)
    vlm.generate(clip(29), prompt(vlm), max_new_tokens=2)
    assert work.done()[0] == 0, "the last is kept"
    vlm.generate(clip(0), prompt(vlm), max_new_tokens=2)
    assert work.done()[0] == 2, "the first has gone"
    vlm.memory.limit_bytes = 100
    vlm.generate(clip(1), prompt(vlm), max_new_tokens=2)
    assert vlm.memory.nbytes <= 100


def test_a_copy_starts_empty_and_keeps_the_limit():
    memory = Memory(1 << 20)
    memory.keep_clip("a", EncodedClip(torch.zeros(1, 1)))
    assert memory.nbytes == 0, "nothing is kept before the weights were looked at"
    memory.refresh(torch.nn.Linear(1, 1), torch.device("cpu"))
    memory.keep_clip("a", EncodedClip(torch.zeros(1, 1)))
    for other in (copy.deepcopy(memory), pickle.loads(pickle.dumps(memory))):
        assert (other.nbytes, other.limit_bytes) == (0, 1 << 20)
    assert memory.nbytes == 4


def test_inference_mode_and_back(make_vlm):
    vlm = make_vlm()
    expected = [forgetful(vlm).generate(clip(0), prompt(vlm, text), max_new_tokens=4) for text in QUESTIONS]
    said = []
    for i, text in enumerate(QUESTIONS):
        with torch.inference_mode(i % 2 == 0):
            said.append(vlm.generate(clip(0), prompt(vlm, text), max_new_tokens=4))
    assert said == expected


def test_where_sequences_part():
    a = np.array([1, 2, 3, 4])
    assert [common_length(a, np.array(b)) for b in ([1, 2, 3, 4, 5], [1, 2, 9], [7], [1, 2, 3, 4])] == [4, 2, 0, 4]
    assert common_length(np.array([[0, 1, 2], [0, 0, 1]]), np.array([[0, 1, 2], [0, 0, 2]])) == 2


def test_a_growing_cache_holds_what_the_librarys_own_does():
    from transformers import DynamicCache

    from prismatic.models.kv_cache import PromptCache

    torch.manual_seed(0)
    ours, theirs = PromptCache(6), DynamicCache()

    def both(method: str, *args) -> None:
        for cache in (ours, theirs):
            getattr(cache, method)(*args)

    def grow(B: int, n: int) -> None:
        for layer in range(2):
            keys, values = torch.randn(2, B, 3, n, 4)
            for got, wanted in zip(ours.update(keys, values, layer), theirs.update(keys, values, layer), strict=True):
                assert torch.equal(got, wanted)

    grow(1, 5)
    grow(1, 1)
    grow(1, 1)  # beyond its room
    both("crop", -3)
    grow(1, 2)
    both("batch_repeat_interleave", 3)
    grow(3, 1)
    both("reorder_cache", torch.tensor([2, 0, 0]))
    grow(3, 1)
    both("batch_select_indices", torch.tensor([1]))
    grow(1, 70)
    assert ours.get_seq_length() == theirs.get_seq_length() == 78
    beginning = ours.beginning(5, 9, 2)
    assert torch.equal(beginning.layers[1].keys, theirs.layers[1].keys[:, :, :5].repeat(2, 1, 1, 1))
    beginning.update(*torch.zeros(2, 2, 3, 1, 4), 1)
    assert torch.equal(ours.layers[1].keys, theirs.layers[1].keys), "a copy is not written through"
