"""`webvid.py prompts`: the same rows asked in k different ways."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from tqdm import tqdm

from prismatic.conf.webvid_rows import PromptsConfig
from prismatic.webvid.files import iter_rows, read_text, write_rows
from prismatic.webvid.rows import split_question, turns_of

PROMPTS = (
    "What is happening in the video?",
    "Describe the video.",
    "What does the video show?",
    "Tell me what happens in this clip.",
    "Summarize the content of the video.",
    "Write a caption for the video.",
    "What can be seen in the video?",
    "Explain what is going on in the clip.",
    "Give a short description of the video.",
    "What takes place in this video?",
    "Who or what appears in the video, and what happens?",
    "Put the events of the video into words.",
)
"""Questions that mean the default one, where no list is given."""

_STRAIGHT = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-", "\u00a0": " "})


def prompts(cfg: PromptsConfig) -> str:
    """Write cfg.output and return a summary. Raises ValueError for input that cannot be used."""
    cfg.validate()
    others = [p for p in (PROMPTS if cfg.prompts is None else read_prompts(cfg)) if p != cfg.prompt]
    if cfg.k - 1 > len(others):
        source = "our list" if cfg.prompts is None else f"--prompts {cfg.prompts}"
        raise ValueError(f"--k {cfg.k} needs {cfg.k - 1} questions beside --prompt; {source} has {len(others)}")
    used: Counter[str] = Counter()
    read = untouched = 0

    def out() -> Iterator[dict[str, Any]]:
        nonlocal read, untouched
        for number, row in enumerate(tqdm(iter_rows(cfg.annotations, "--annotations"), unit="row", desc="prompts")):
            read += 1
            turns = turns_of(row, f"--annotations {cfg.annotations}, row {number + 1}")
            question, around = split_question(str(turns[0]["value"]))
            if question != cfg.prompt:
                untouched += 1
                yield row
                continue
            rng = np.random.default_rng([cfg.seed % 2**32, number])
            chosen = [cfg.prompt, *(others[i] for i in rng.permutation(len(others))[: cfg.k - 1].tolist())]
            for prompt in [chosen[int(rng.integers(cfg.k))]] if cfg.draw else chosen:
                used[prompt] += 1
                yield {**row, "conversations": [{**turns[0], "value": around.format(prompt)}, *turns[1:]]}

    written = write_rows(cfg.output, out())
    lines = [f"{cfg.output}: {written:,} rows of {read:,}; {len(used)} different questions"]
    if untouched:
        lines.append(f"  {untouched:,} rows ask something else than --prompt and stay as they are")
    return "\n".join(lines)


def read_prompts(cfg: PromptsConfig) -> list[str]:
    """The questions of --prompts, each once, with straight quotes."""
    assert cfg.prompts is not None
    lines = read_text(cfg.prompts, "--prompts").translate(_STRAIGHT).splitlines()
    return list(dict.fromkeys(" ".join(line.split()) for line in lines if line.strip()))
