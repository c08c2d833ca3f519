"""Small data sets in the layouts that docs/data.md lists: one builder for each row of its table."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

FRONT_MATTER = """---
configs:
- config_name: {0}
  data_files:
  - split: train
    path: {1}/train-*
  - split: test
    path: {1}/test-*
{2}---
# A set
"""


def png(color: str) -> bytes:
    out = BytesIO()
    Image.new("RGB", (8, 6), color).save(out, "PNG")
    return out.getvalue()


def cell(color: str) -> dict[str, object]:
    return {"bytes": png(color), "path": f"{color}.png"}


def text(path: str, value: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(value, encoding="utf-8", newline="")


def document(path: str, value: object) -> None:
    text(path, json.dumps(value, ensure_ascii=False, indent=1))


def lines(path: str, rows: list) -> None:
    text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def parquet(path: str, rows: list, group: int = 2) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=group)


def picture(path: str, color: str = "red") -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(png(color))
    return path


def rows(n: int = 3, **more: object) -> list[dict[str, object]]:
    return [{"question": f"what is {k}?", "answer": str(k), **more} for k in range(n)]


def shards(folder: str) -> None:
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        parquet(f"{folder}/{name}.parquet", rows(image=cell("red")))


def snapshot() -> None:
    shards("snapshot/data")
    text("snapshot/README.md", FRONT_MATTER.format("default", "data", ""))
    picture("snapshot/assets/logo.png")


def several() -> None:
    shards("several/easy")
    shards("several/hard")
    more = "- config_name: hard\n  data_files:\n  - split: test\n    path: hard/test-*\n"
    text("several/README.md", FRONT_MATTER.format("easy", "easy", more))


def stored() -> None:
    from datasets import Dataset

    Dataset.from_list(rows()).save_to_disk("stored")


def pictures() -> None:
    picture("pictures/a.png")
    lines("pictures/metadata.jsonl", rows(file_name="a.png"))


def llava() -> None:
    turns = [("human", "<image>\nWhat colour?"), ("gpt", "Red."), ("human", "And now?"), ("gpt", "Still red.")]
    conversation = [{"from": who, "value": said} for who, said in turns]
    document("llava.json", [{"id": "7", "image": picture("coco/a.png"), "conversations": conversation}])


def chat() -> None:
    asked = [{"type": "image", "image": picture("a.png")}, {"type": "text", "text": "What colour?"}]
    turns = [("system", "Be brief."), ("user", asked), ("assistant", [{"type": "text", "text": "Red."}])]
    by_path = [{"role": role, "content": content} for role, content in turns]
    in_row = [{"role": "user", "content": "What colour?<image>"}, {"role": "assistant", "content": "Red."}]
    lines("chat.jsonl", [{"messages": by_path}, {"messages": in_row, "images": ["a.png"]}])


def cauldron() -> None:
    texts = [{"user": "What colour?", "assistant": "Red.", "source": "x"}]
    parquet("cauldron.parquet", [{"images": [cell("red")], "texts": texts}])


def options() -> None:
    given = [("index", 1), ("letter", "B"), ("text", "no"), ("boolean", False)]
    lines("options.jsonl", [{"id": n, "question": "q?", "choices": ["yes", "no"], "answer": a} for n, a in given])


def arc() -> None:
    labelled = [{"label": ["A", "B"], "text": ["x", "y"]}, {"label": ["1", "2"], "text": ["x", "y"]}]
    keys = ("B", "2")
    lines("arc.jsonl", [{"question": "q?", "choices": c, "answerKey": k} for c, k in zip(labelled, keys)])


def mmbench() -> None:
    encoded = base64.b64encode(png("red")).decode()
    text(
        "mmbench.tsv",
        "index\tquestion\thint\tA\tB\tC\tD\tanswer\tcategory\timage\n"
        f"241\tWhich?\t\tx\ty\tz\tw\tB\tocr\t{encoded}\n"
        f'252\t"Is it\nso?"\tlook\tx\ty\t\t\tA\tocr\t{encoded}\n',
    )


def scienceqa() -> None:
    row = {"question": "Which?", "choices": ["x", "y"], "answer": 1, "hint": "", "image": cell("red")}
    parquet("scienceqa.parquet", [{**row, "lecture": "l", "solution": "s", "subject": "bio"}] * 2)


def mathvista() -> None:
    row = {"pid": "1", "question": "How much?", "image": "images/1.jpg", "decoded_image": cell("red"), "answer": "1.2"}
    held = {"query": "Hint: ..\nHow much?", "precision": 1.0, "question_type": "free_form", "unit": None}
    chosen = {**row, **held, "pid": "2", "choices": ["x", "y"], "answer": "y", "question_type": "multi_choice"}
    parquet("mathvista.parquet", [{**row, **held, "choices": None}, chosen])


def chartqa_folder() -> None:
    for split, part in (("train", "human"), ("train", "augmented"), ("val", "augmented")):
        entry = {"imgname": "1.png", "query": "How many?", "label": "3"}
        picture(f"chartqa/{split}/png/1.png")
        document(f"chartqa/{split}/{split}_{part}.json", [entry])


def vqav2() -> None:
    votes = [{"answer": word, "answer_confidence": "yes", "answer_id": k} for k, word in enumerate(("net", "a", "a"))]
    row = {"question": "Where?", "question_id": 9, "answers": votes, "answer_type": "other", "image": cell("red")}
    parquet("vqav2.parquet", [{**row, "multiple_choice_answer": "a"}])


def textvqa() -> None:
    parquet("textvqa.parquet", [{"question": "q?", "question_id": 3, "answers": ["a", "b"], "image": cell("red")}])


def mmmu() -> None:
    row = {"id": "v_1", "question": "q?", "options": "['x', \"y's\"]", "answer": "B", "subfield": "art"}
    none = {f"image_{k}": None for k in range(3, 8)}
    parquet("mmmu.parquet", [{**row, "image_1": cell("red"), "image_2": cell("blue"), **none}])


BUILDERS: dict[str, Callable[[], None]] = {
    "lines.jsonl": lambda: lines("lines.jsonl", rows()),
    "list.json": lambda: document("list.json", rows()),
    "by_id.json": lambda: document("by_id.json", {"17": rows()[0], "x": rows()[1]}),
    "wrapped.json": lambda: document("wrapped.json", {"info": {"year": 2020}, "data": rows()}),
    "columns.json": lambda: text("columns.json", '{"question": {"0": "p", "1": "q"}, "answer": {"0": 1, "1": 2}}'),
    "table.csv": lambda: text("table.csv", '\ufeffid,question,answer\r\n1,"one,\r\n""two""?",3\r\n2,q?,4\r\n'),
    "table.tsv": lambda: text("table.tsv", 'question\tanswer\na "b", c?\t1\n"5" pipe?\t2\n'),
    "odd.txt": lambda: text("odd.txt", "question^answer\nq?^1\n"),
    "rows.parquet": lambda: parquet("rows.parquet", [*rows(image=cell("red")), *rows(1, image=None)]),
    "shards": lambda: shards("shards"),
    "snapshot": snapshot,
    "several": several,
    "stored": stored,
    "pictures": pictures,
    "llava.json": llava,
    "chat.jsonl": chat,
    "cauldron.parquet": cauldron,
    "renamed.jsonl": lambda: lines("renamed.jsonl", [{"problem": "q?", "solution": "1"}]),
    "options.jsonl": options,
    "from_one.jsonl": lambda: lines("from_one.jsonl", [{"question": "q?", "choices": ["x", "y"], "answer": 2}]),
    "arc.jsonl": arc,
    "mmbench.tsv": mmbench,
    "scienceqa.parquet": scienceqa,
    "mathvista.parquet": mathvista,
    "chartqa.parquet": lambda: parquet(
        "chartqa.parquet", [{"query": "How many?", "label": ["3"], "image": cell("red"), "human_or_machine": 0}]
    ),
    "chartqa": chartqa_folder,
    "vqav2.parquet": vqav2,
    "textvqa.parquet": textvqa,
    "ai2d.parquet": lambda: parquet(
        "ai2d.parquet", [{"question": "q?", "options": ["x", "y"], "answer": "1", "image": cell("red")}]
    ),
    "mmmu.parquet": mmmu,
}
"""By the file or folder that the command names."""
