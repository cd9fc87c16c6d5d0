"""Every accepted schema, every bad file, and the table of records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prismatic.data.annotations import AnnotationError, RecordTable, check_media, load_records
from prismatic.types import Medium, Turn
from tests.data.annotation_rows import CHAT, TEXT, media, one, write

# --- the schemas ---


def test_llava_image(root: Path) -> None:
    record = one(root, {"id": 7, "image": "coco/train2017/a b.jpg", "conversations": CHAT})
    assert record.id == "7" and record.source.endswith("rows.json, row 1")
    assert record.media == (Medium("image", (str(root / "coco/train2017/a b.jpg"),)),)
    assert record.turns == (Turn("human", "<image>\nQ"), Turn("gpt", "A"))


@pytest.mark.parametrize("absent", [{}, {"image": None}, {"images": []}, {"frames": []}, {"videos": None}])
def test_text_only(root: Path, absent: dict[str, Any]) -> None:
    assert one(root, {"id": "t", **absent, "conversations": TEXT}).media == ()


def test_frames_are_one_clip_and_nested_frames_are_several(root: Path) -> None:
    row = {"frames": ["v/0000.png", "v/0001.png"], "conversations": CHAT}
    assert media(root, row) == [("frames", ["v/0000.png", "v/0001.png"], None)]
    nested = {"frames": [["a/0.png"], ["b/0.png", "b/1.png"]], "conversations": TEXT}
    assert [m[1] for m in media(root, nested)] == [["a/0.png"], ["b/0.png", "b/1.png"]]


@pytest.mark.parametrize(
    ("row_id", "found"), [("train-0000000003", "0000000003"), ("val-0000000003", "val-0000000003")]
)
def test_lines_of_webvid10m(root: Path, row_id: str, found: str) -> None:
    said = {"images": ["0/0.png", "0/1.png"], "user": "Describe", "assistant": "A dog."}
    other = {"images": ["1/0.png"], "user": "Other", "assistant": "Other"}
    row = {"id": row_id, "source": "webvid10m", "conversations": [said, other]}
    record = one(root, row, "rows.jsonl")
    assert record.id == found and record.turns == (Turn("human", "Describe"), Turn("gpt", "A dog."))
    assert [m.kind for m in record.media] == ["frames"] and len(record.media[0].paths) == 2


def test_videos_with_their_own_number_of_frames(root: Path) -> None:
    row = {"id": "v", "videos": ["a.mp4", "b.webm"], "num_frames_per_video": 4, "conversations": TEXT}
    assert media(root, row) == [("video", ["a.mp4"], 4), ("video", ["b.webm"], 4)]
    assert media(root, {**row, "num_frames_per_video": None})[0][2] is None
    assert [m[2] for m in media(root, {**row, "num_frames_per_video": [3, 5]})] == [3, 5]


def test_woven_row_keeps_its_joined_id(root: Path) -> None:
    row = {"id": "id1, id2,", "frames": ["1/0.png", "2/0.png"], "conversations": CHAT}
    assert one(root, row).id == "id1, id2,"


@pytest.mark.parametrize("name", ["a.mp4", "a.AVI", "a.Mov", "a.mkv", "a.flv", "a.wmv", "a.webm", "a.m4v"])
@pytest.mark.parametrize("key", ["image", "video"])
def test_video_is_known_by_its_extension_in_either_key(root: Path, key: str, name: str) -> None:
    assert media(root, {key: name, "conversations": CHAT}) == [("video", [name], None)]


def test_folder_of_frames_is_a_video(root: Path) -> None:
    (root / "clip").mkdir()
    assert media(root, {"video": "clip", "conversations": CHAT}) == [("video", ["clip"], None)]


def test_video_chatgpt_source_finds_the_file_of_its_id(root: Path) -> None:
    (root / "deep").mkdir()
    (root / "deep" / "v_1.mkv").touch()
    (root / "deep" / "v_1.txt").touch()
    rows = [{"video_id": "v_1", "q": "What?", "a": "A cat."}, {"video_id": "v_2", "q": "Who?", "a": "A dog."}]
    first, second = load_records(write(root.parent, rows), root)
    assert first.media == (Medium("video", (str(root / "deep/v_1.mkv"),)),)
    assert second.media[0].paths == (str(root / "v_2.mp4"),)  # reported as missing where it is read
    assert first.turns == (Turn("human", "What?\n<video>"), Turn("gpt", "A cat."))
    assert second.turns[0].text == "<video>\nWho?"


def test_video_chatgpt_training_row_names_features(root: Path) -> None:
    (root / "v_1.avi").touch()
    row = {"id": "v_1", "video": "v_1.pkl", "conversations": CHAT}
    assert media(root, row) == [("video", ["v_1.avi"], None)]


def test_video_llava_lists_and_the_order_of_placeholders(root: Path) -> None:
    row = {"video": ["v.mp4"], "image": ["a.jpg", "b.jpg"], "conversations": TEXT}
    assert [m[1] for m in media(root, row)] == [["v.mp4"], ["a.jpg"], ["b.jpg"]]  # videos first
    said = [{"from": "human", "value": "<image> <video> <image> Q"}, {"from": "gpt", "value": "A"}]
    assert [m[1] for m in media(root, {**row, "conversations": said})] == [["a.jpg"], ["v.mp4"], ["b.jpg"]]


def test_sharegpt_messages(root: Path) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "<video>Q"},
        {"role": "assistant", "content": "A"},
    ]
    record = one(root, {"messages": messages, "videos": ["x.mp4"]})
    assert record.turns == (Turn("human", "Be brief.\n\n<video>Q"), Turn("gpt", "A"))
    assert record.media == (Medium("video", (str(root / "x.mp4"),)),)


def test_dataset_info_maps_columns_and_tags(root: Path) -> None:
    rows = [{"talk": [{"who": "U", "what": "<video>Q"}, {"who": "B", "what": "A"}], "clips": ["x.mp4"]}]
    write(root.parent, rows, "mine.json")
    tags = {"role_tag": "who", "content_tag": "what", "user_tag": "U", "assistant_tag": "B"}
    columns = {"messages": "talk", "videos": "clips"}
    entry = {"file_name": "mine.json", "formatting": "sharegpt", "columns": columns, "tags": tags}
    info = write(root.parent, {"mine": entry, "hub": {"hf_hub_url": "a/b"}}, "dataset_info.json")
    (record,) = load_records(info, root)
    assert record.turns[1] == Turn("gpt", "A") and record.media[0].kind == "video"
    write(root.parent, {"mine": entry, "other": entry}, "dataset_info.json")
    assert len(load_records(f"{info}#mine", root)) == 1
    with pytest.raises(AnnotationError, match=r"describes 2 files .*dataset_info\.json#mine"):
        load_records(info, root)


def test_schemas_mix_freely_in_one_file(root: Path) -> None:
    rows = [
        {"image": "a.jpg", "conversations": CHAT},
        {"frames": ["a/0.png"], "conversations": CHAT},
        {"videos": ["a.mp4", "b.mp4"], "num_frames_per_video": 2, "conversations": TEXT},
        {
            "messages": [{"role": "user", "content": "<video>Q"}, {"role": "assistant", "content": "A"}],
            "videos": ["x.mp4"],
        },
        {"video_id": "v", "q": "Q", "a": "A"},
        {"conversations": TEXT},
    ]
    for name in ("rows.json", "rows.jsonl"):
        kinds = [[m.kind for m in record.media] for record in load_records(write(root.parent, rows, name), root)]
        assert kinds == [["image"], ["frames"], ["video", "video"], ["video"], ["video"], []]


def test_lines_under_a_json_name_and_a_list_under_a_jsonl_name(root: Path) -> None:
    line = json.dumps({"conversations": TEXT})
    (root.parent / "a.json").write_text(f"{line}\n\n{line}\n")
    (root.parent / "b.jsonl").write_text(f"[{line}]")
    assert [len(load_records(root.parent / name, root)) for name in ("a.json", "b.jsonl")] == [2, 1]


def test_several_files_come_after_each_other(root: Path) -> None:
    a = write(root.parent, [{"id": "a", "conversations": TEXT}], "a.json")
    b = write(root.parent, [{"id": "b", "conversations": TEXT}], "b.jsonl")
    assert [record.id for record in load_records([b, a], root)] == ["b", "a"]


# --- mixtures ---


def _mixture(root: Path, strategy: str, name: str = "{a,b}.json") -> list[str]:
    for part in "ab":
        write(root.parent, [{"id": f"{part}{i}", "conversations": TEXT} for i in range(10)], f"{part}.json")
    path = root.parent / "mix.yaml"
    path.write_text(f"datasets:\n  - json_path: '{name}'\n    sampling_strategy: {strategy}\n")
    return [record.id for record in load_records(path, root)]


@pytest.mark.parametrize(
    ("strategy", "found"),
    [
        ("first:2", ["a0", "a1", "b0", "b1"]),
        ("end:1", ["a9", "b9"]),
        ("first:15%", ["a0", "a1", "b0", "b1"]),
        ("end:0", None),
        ("first:99", [f"{p}{i}" for p in "ab" for i in range(10)]),
    ],
)
def test_mixture_takes_shares(root: Path, strategy: str, found: list[str] | None) -> None:
    if found is None:
        with pytest.raises(AnnotationError, match="no row is left"):
            _mixture(root, strategy)
    else:
        assert _mixture(root, strategy) == found


def test_random_share_is_seeded_and_without_repeats(root: Path) -> None:
    drawn = _mixture(root, "random:40%")
    assert len(drawn) == len(set(drawn)) == 8 and drawn == _mixture(root, "random:4")
    other = [record.id for record in load_records(root.parent / "mix.yaml", root, seed=1)]
    assert len(other) == 8 and other != drawn


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("datasets: []", "expected `datasets:`"),
        ("datasets:\n  - path: a.json", "entry 1: expected a json_path"),
        ("datasets:\n  - {json_path: a.json, sampling_strategy: some}", "sampling_strategy 'some' is not one of all"),
        ("a: [", "is not YAML"),
        ("datasets:\n  - {json_path: gone.json}", r"gone\.json does not exist"),
    ],
)
def test_bad_mixture(root: Path, text: str, said: str) -> None:
    write(root.parent, [{"conversations": TEXT}], "a.json")
    (root.parent / "mix.yml").write_text(text)
    with pytest.raises(AnnotationError, match=said):
        load_records(root.parent / "mix.yml", root)


# --- bad files ---


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, r"rows\.json does not exist; pass --dataset\.finetune_stage_components"),
        (b"", r"rows\.json is empty"),
        (b" \n", r"rows\.json is empty"),
        (b"[]", "list of rows is empty"),
        (b"[{]", "is not JSON: .* at line 1, column 3"),
        (b'[{"a": 1}', "is not JSON"),
        (b'"text"', "expected a list of rows, got a text"),
        (b'{"conversations": []}', "expected a list of rows, got an object"),
        (b"\xff\xfe\x00", "is not UTF-8 text"),
        (b'{"a": 1}\n{"b"', "is not JSON lines: .* at line 2"),
    ],
)
def test_bad_file(root: Path, content: bytes | None, said: str) -> None:
    path = root.parent / "rows.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(AnnotationError, match=said):
        load_records(path, root)


def test_folder_in_the_place_of_a_file(root: Path) -> None:
    with pytest.raises(AnnotationError, match="is a folder; pass --dataset"):
        load_records(root, root)


# --- the table, and media that are asked for ---


def test_table_is_a_sequence_of_equal_records(root: Path) -> None:
    rows = [{"id": str(i), "image": f"{i}.jpg", "conversations": CHAT} for i in range(5)]
    table = load_records(write(root.parent, rows), root)
    assert [record.id for record in table] == list("01234") and table[-1].id == "4"
    assert [record.id for record in table[1:4:2]] == ["1", "3"] and table == list(table)
    assert not len(RecordTable([]))
    with pytest.raises(IndexError):
        table[5]


def test_check_media_names_what_is_missing_empty_or_no_video(root: Path) -> None:
    (root / "empty.mp4").touch()
    (root / "text.mp4").write_text("not a video")
    rows = [{"image": name, "conversations": CHAT} for name in ("gone.jpg", "empty.mp4", "text.mp4")]
    table = load_records(write(root.parent, rows), root)
    missing, empty = check_media(table)
    assert missing.endswith(f"row 1: {root}/gone.jpg: no such file") and empty.endswith("the file is empty")
    assert "row 3" in check_media(table, open_files=True)[2] and len(check_media(table, open_files=True)) == 3
