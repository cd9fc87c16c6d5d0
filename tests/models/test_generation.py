"""Asking: batches equal one by one, forms of frames, ends of answers, choices, errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from prismatic.models.media import EncodedClip
from prismatic.prompting import tokenize_prompt


def clip(seed: int, T: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (T, 20, 24, 3), dtype=np.uint8)


def prompt(vlm, text: str = "What happens?") -> str:
    builder = vlm.get_prompt_builder()
    builder.add_turn("human", text)
    return builder.get_prompt()


PROMPTS = ("What happens?", "A red circle moves to the left and stops. What happens to it then, yes or no?", "blue")


def plain_greedy(vlm, frames: np.ndarray | None, text: str, steps: int) -> list[int]:
    """Greedy tokens by full forward passes without a cache."""
    encoded = vlm.encode_clips(frames)
    tok = vlm.llm_backbone.tokenizer
    ids = tokenize_prompt(text, [len(c.tokens) for c in encoded], tokenizer=tok, layout=vlm.layout)
    visual = torch.cat([c.tokens for c in encoded]) if encoded else torch.zeros(0, 32)
    new: list[int] = []
    with torch.no_grad():
        for _ in range(steps):
            embeds = vlm.splice(torch.tensor([ids + new]), visual)
            new.append(int(vlm.llm_backbone.llm(inputs_embeds=embeds, use_cache=False).logits[0, -1].argmax()))
            if new[-1] == tok.eos_token_id:
                break
    return new


@pytest.mark.parametrize("layout", ["after-bos", "inline"])
def test_batch_equals_one_by_one_equals_plain(make_vlm, family, layout):
    vlm = make_vlm(family, layout=layout)
    tok = vlm.llm_backbone.tokenizer
    frames = [clip(0), None, clip(2)]
    prompts = [prompt(vlm, text) for text in PROMPTS]
    together = vlm.generate_batch(frames, prompts, max_new_tokens=8)
    alone = [vlm.generate(f, p, max_new_tokens=8) for f, p in zip(frames, prompts, strict=True)]
    plain = [plain_greedy(vlm, f, p, 8) for f, p in zip(frames, prompts, strict=True)]
    assert together == alone == [tok.decode(ids, skip_special_tokens=True).strip() for ids in plain]
    assert len(set(together)) > 1 or family == "gemma3_text"  # whose random weights hardly look at the prompt


def test_frames_and_their_order_matter(make_vlm):
    vlm = make_vlm()
    a, b = vlm.encode_clips(clip(0))[0], vlm.encode_clips(clip(0)[::-1].copy())[0]
    torch.testing.assert_close(a.tokens[:4], b.tokens[4:])
    assert (a.tokens - b.tokens).abs().max() > 1e-3


def test_every_form_of_frames(make_vlm, tmp_path):
    vlm = make_vlm()
    array = clip(0)
    pictures = [Image.fromarray(frame) for frame in array]
    expected = vlm.encode_clips(array)[0].tokens
    (tmp_path / "frames").mkdir()
    for i, picture in enumerate(pictures):
        picture.save(tmp_path / "frames" / f"{i:04d}.png")
    pictures[0].save(tmp_path / "image.png")
    for form in (pictures, tuple(pictures), torch.from_numpy(array), list(array), tmp_path / "frames"):
        (one,) = vlm.encode_clips(form)
        torch.testing.assert_close(one.tokens, expected)
    for form in (pictures[0], str(tmp_path / "image.png"), array[0]):
        (one,) = vlm.encode_clips(form)
        torch.testing.assert_close(one.tokens, expected[:4])
    several = vlm.encode_clips([pictures, tmp_path / "image.png", array, [pictures[0]]])
    assert [len(c.tokens) for c in several] == [8, 4, 8, 4]
    assert vlm.encode_clips(None) == vlm.encode_clips([]) == []


def test_path_to_a_video_is_sampled(make_vlm, tmp_path):
    av = pytest.importorskip("av")
    path = tmp_path / "levels.mkv"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("ffv1", rate=10, options={"g": "3"})  # lossless: frame i is exactly grey 10 i
        stream.width, stream.height, stream.pix_fmt = 32, 32, "bgr0"
        for i in range(9):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 10 * i, np.uint8), format="rgb24")
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    vlm = make_vlm(num_frames=3)
    wanted = np.stack([np.full((32, 32, 3), 10 * i, np.uint8) for i in (0, 4, 8)])
    torch.testing.assert_close(vlm.encode_clips(path)[0].tokens, vlm.encode_clips(wanted)[0].tokens)
    assert vlm.generate(str(path), prompt(vlm), max_new_tokens=3) == vlm.generate(wanted, prompt(vlm), max_new_tokens=3)
    vlm.sampler = "keyframes"
    wanted = np.stack([np.full((32, 32, 3), 10 * i, np.uint8) for i in (0, 3, 6)])
    torch.testing.assert_close(vlm.encode_clips(path)[0].tokens, vlm.encode_clips(wanted)[0].tokens)


def test_encoded_clips_save_the_vision_work(make_vlm):
    vlm = make_vlm()
    passes = []
    vlm.vision_backbone.register_forward_hook(lambda *_: passes.append(1))
    vlm.memory.limit_bytes = 0  # which would save it by itself
    direct = [vlm.generate(clip(0), prompt(vlm, text), max_new_tokens=6) for text in PROMPTS]
    assert len(passes) == 3
    encoded = vlm.encode_clips(clip(0))
    assert isinstance(encoded[0], EncodedClip)
    assert [vlm.generate(encoded, prompt(vlm, text), max_new_tokens=6) for text in PROMPTS] == direct
    assert len(passes) == 4


@pytest.mark.parametrize("family_name", ["llama", "mistral-sliding", "gemma2", "qwen3"])
@pytest.mark.parametrize("per_token", [False, True])
def test_score_choices_is_the_likelihood_of_whole_strings(make_vlm, family_name, per_token):
    vlm = make_vlm(family_name)
    tok, text = vlm.llm_backbone.tokenizer, prompt(vlm)
    choices = ["red", "blue square splits", "1"]
    visual = vlm.encode_clips(clip(0))[0].tokens
    ids = tokenize_prompt(text, [len(visual)], tokenizer=tok, layout="after-bos")
    scores = []
    for choice in choices:
        answer = tok(choice, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = vlm.llm_backbone.llm(inputs_embeds=vlm.splice(torch.tensor([ids + answer]), visual)).logits[0]
        log = logits.log_softmax(-1)[len(ids) - 1 : -1].gather(1, torch.tensor(answer)[:, None]).sum().double()
        scores.append(log / len(answer) if per_token else log)
    expected = torch.stack(scores).softmax(0).tolist()
    assert vlm.score_choices(clip(0), text, choices, per_token=per_token) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("family_name", ["llama", "mistral-sliding", "gemma2", "gemma3_text"])
def test_choices_of_several_prompts_are_scored_as_one_by_one(make_vlm, family_name):
    vlm = make_vlm(family_name)
    letters, words = ["A", "B", "C"], ["red", "blue square splits", "1", "no"]
    asked = [(clip(0), 0, words), (clip(1), 1, letters), (None, 2, words[:2]), (clip(1), 0, words), (clip(0), 1, words)]
    clips, prompts, choices = zip(*[(c, prompt(vlm, PROMPTS[p]), own) for c, p, own in asked], strict=True)
    alone = []
    for one in zip(clips, prompts, choices, strict=True):
        vlm.memory.forget()
        alone.append(vlm.score_choices(*one))
    vlm.memory.forget()
    for _ in range(2):  # nothing known, then what is remembered
        together = vlm.score_choices_batch(clips, prompts, choices)
        assert [len(row) for row in together] == [len(own) for own in choices]
        for row, expected in zip(together, alone, strict=True):
            assert row == pytest.approx(expected, abs=1e-5)
    assert vlm.score_choices_batch([], [], []) == []
    with pytest.raises(ValueError, match="each prompt needs its own"):
        vlm.score_choices_batch(clips[:1], prompts, choices)


def test_clips_of_the_same_pixels_are_encoded_once(make_vlm):
    vlm, counted = make_vlm(), []
    vlm.vision_backbone.register_forward_hook(lambda _, frames, __: counted.append(len(frames[0])))
    R = vlm.vision_backbone.image_spec.resolution
    a, b = (torch.randint(0, 256, (T, 3, R, R), dtype=torch.uint8) for T in (2, 3))
    first, second, again = vlm.encode_frames([a, b, a.clone()])
    assert counted == [5] and first is again and first is not second
    assert vlm.encode_frames([b.clone()]) == [second] and counted == [5]
    torch.testing.assert_close(torch.cat([first.tokens, second.tokens]), vlm.encode(torch.cat([a, b]), (2, 3)))


def test_score_choices_of_one_token_each_and_of_beginnings(make_vlm):
    vlm = make_vlm()
    letters = vlm.score_choices(clip(0), prompt(vlm), ["A", "B", "C", "D"])
    assert sum(letters) == pytest.approx(1) and len(letters) == 4
    # "1" begins "1 1": without the end of the answer the shorter one could never lose.
    tok, text = vlm.llm_backbone.tokenizer, prompt(vlm)
    visual = vlm.encode_clips(clip(0))[0].tokens
    ids, logs = tokenize_prompt(text, [len(visual)], tokenizer=tok, layout="after-bos"), []
    for choice in ("1", "1 1"):
        answer = [*tok(choice, add_special_tokens=False)["input_ids"], tok.eos_token_id]
        with torch.no_grad():
            logits = vlm.llm_backbone.llm(inputs_embeds=vlm.splice(torch.tensor([ids + answer]), visual)).logits[0]
        logs.append(logits.log_softmax(-1)[len(ids) - 1 : -1].gather(1, torch.tensor(answer)[:, None]).sum())
    expected = torch.stack(logs).softmax(0).tolist()
    assert vlm.score_choices(clip(0), text, ["1", "1 1"]) == pytest.approx(expected, abs=1e-5)
    for bad, message in (([], "list of answers"), ("AB", "list of answers"), (["A", ""], "choice '' has no tokens")):
        with pytest.raises(ValueError, match=message):
            vlm.score_choices(clip(0), prompt(vlm), bad)


def test_generate_keywords_reach_the_llm(make_vlm):
    vlm = make_vlm()
    text = prompt(vlm)
    torch.manual_seed(0)
    sampled = {vlm.generate(clip(0), text, max_new_tokens=8, do_sample=True, temperature=2.0) for _ in range(4)}
    assert len(sampled) > 1
    seen = {}
    original = vlm.llm_backbone.llm.generate
    vlm.llm_backbone.llm.generate = lambda **kw: (seen.update(kw), original(**kw))[1]
    vlm.generate(clip(0), text, max_new_tokens=4, num_beams=3, length_penalty=0.5, min_new_tokens=2)
    assert seen["num_beams"] == 3 and seen["length_penalty"] == 0.5 and seen["use_cache"] is True
    with pytest.raises(ValueError, match="num_return_sequences"):
        vlm.generate(clip(0), text, num_return_sequences=2)


def test_beam_search_in_a_batch_equals_one_by_one(make_vlm):
    vlm = make_vlm()
    frames, prompts = [clip(0), clip(1, 2)], [prompt(vlm, t) for t in PROMPTS[:2]]
    together = vlm.generate_batch(frames, prompts, num_beams=3, max_new_tokens=6)
    assert together == [vlm.generate(f, p, num_beams=3, max_new_tokens=6) for f, p in zip(frames, prompts, strict=True)]


def test_answers_end_where_the_template_says(make_vlm):
    from dataclasses import replace

    vlm = make_vlm()
    tok, text = vlm.llm_backbone.tokenizer, prompt(vlm)
    plain = [i for i in range(3, len(tok)) if (t := tok.decode([i])).isalnum() and t.isascii() and len(t) == 1]
    kwargs = {"max_new_tokens": 12, "suppress_tokens": sorted(set(range(len(tok))) - set(plain))}  # letters only
    full = vlm.generate(clip(0), text, **kwargs)
    assert len(full) == 12
    # A letter, then two letters (two tokens) of this model's own answer become its end.
    end = tok(full[5], add_special_tokens=False)["input_ids"][0]
    assert vlm.generate(clip(0), text, eos_token_id=end, **kwargs) == full.partition(full[5])[0]
    stop = full[5:7]
    assert vlm.generate(clip(0), text, stop_strings=[stop], **kwargs) == "".join(full.partition(stop)[:2])
    vlm.template = replace(vlm.template, stop=(stop,))
    short = vlm.generate_batch([clip(0), clip(0)], [text, text], **kwargs)
    assert short == [full.partition(stop)[0]] * 2


def test_training_mode_is_restored(make_vlm):
    vlm = make_vlm().train()
    vlm.generate(clip(0), prompt(vlm), max_new_tokens=2)
    assert vlm.training and vlm.llm_backbone.training


def test_clips_of_inline_prompts_stand_at_their_placeholders(make_vlm):
    vlm = make_vlm(layout="inline")
    one = prompt(vlm, "before <video> after <image> end")
    two = prompt(vlm, "<video> before after <image> end")
    a, b = clip(0), Image.fromarray(clip(1)[0])
    assert vlm.score_choices([a, b], one, ["red", "blue"]) != pytest.approx(
        vlm.score_choices([a, b], two, ["red", "blue"])
    )
    with pytest.raises(ValueError, match="2 <image>/<video> placeholders but 1 images or videos"):
        vlm.generate(a, one)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (clip(0, 3), "list of 3 frames, but the model takes num_frames 2"),
        ([Image.new("RGB", (8, 8))] * 5, "list of 5 frames, but the model takes num_frames 2"),
        ([Image.new("RGB", (8, 8))], "list of 1 frames, but the model takes num_frames 2"),
        (clip(0).astype(np.float32), "must be uint8"),
        (3, "frames must be one PIL image.*got int"),
        ([3], "got int"),
        (np.zeros((2, 3, 8, 8), np.uint8), r"must be uint8 \[T, H, W, 3\].*\[2, 3, 8, 8\]"),
        ("no/such/file.png", "no such file"),
        ("no/such/video.mp4", "no such file"),
    ],
)
def test_frames_that_do_not_fit(make_vlm, frames, message):
    vlm = make_vlm()
    with pytest.raises(ValueError, match=message):
        vlm.generate(frames, prompt(vlm))


def test_context_overrun(make_vlm):
    vlm = make_vlm(context=64)
    text = prompt(vlm)
    length = 9 + len(vlm.llm_backbone.tokenizer(text)["input_ids"]) - 1
    with pytest.raises(
        ValueError, match=rf"a prompt of {length} tokens .* and 60 more .* context of 64; lower max_new"
    ):
        vlm.generate(clip(0), text, max_new_tokens=60)
    with pytest.raises(ValueError, match="context of 64"):
        vlm.generate(clip(0), prompt(vlm, "A red circle. " * 30))
    seen = {}
    original = vlm.llm_backbone.llm.generate
    vlm.llm_backbone.llm.generate = lambda **kw: (seen.update(kw), original(**kw))[1]
    vlm.generate(clip(0), text)  # without a number: what fits
    assert seen["max_new_tokens"] == 64 - length


def test_prompts_and_clips_must_be_as_many(make_vlm):
    vlm = make_vlm()
    with pytest.raises(ValueError, match="2 clips for 1 prompts"):
        vlm.generate_batch([clip(0), clip(1)], [prompt(vlm)])
    assert vlm.generate_batch([], []) == []


def test_a_header_before_the_answer_is_given_to_the_model(make_vlm):
    vlm = make_vlm(template="llama3-instruct-compat")
    seen = {}
    original = vlm.llm_backbone.llm.generate
    vlm.llm_backbone.llm.generate = lambda **kw: (seen.update(kw), original(**kw))[1]
    vlm.generate(None, prompt(vlm), max_new_tokens=2)
    head = vlm.llm_backbone.tokenizer(vlm.template.head, add_special_tokens=False)["input_ids"]
    assert len(head) > 1
    torch.testing.assert_close(seen["inputs_embeds"][0, -len(head) :], vlm.llm_backbone.embed(torch.tensor(head)))


def test_choices_without_a_shared_cache_score_the_same(make_vlm, monkeypatch):
    vlm = make_vlm()
    shared = vlm.score_choices(clip(0), prompt(vlm), ["red", "blue square", "1"])
    monkeypatch.setattr(type(vlm.llm_backbone), "separates", False)
    assert vlm.score_choices(clip(0), prompt(vlm), ["red", "blue square", "1"]) == pytest.approx(shared, abs=1e-5)
