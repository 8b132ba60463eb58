"Texts that must stay texts, and a run that is made of them."

import json

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(1)</script>",
    "[click](javascript:alert(1))",
    '" onmouseover="alert(1)',
    "{{7*7}}",
    "${7*7}",
    "```\n<script>alert(1)</script>\n```",
    r"$$\href{javascript:alert(1)}{x}$$",
    "../../x",
    "/etc/passwd",
    "a\0b",
    "a\u202eb",
    "x" * 10_000,
    "=cmd|' /C calc'!A0",
    "-rf",
    "a\nb\r\nc",
    "a\ud800b",
    "NaN",
    "CON",
]


def hostile_run(folder, bad):
    "A run folder with `bad` wherever text can stand."
    (folder / "figures").mkdir(parents=True)
    (folder / "figures/a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    result = dict(
        experiment=bad,
        name=bad,
        state=bad,
        data="phantom",
        started=bad,
        finished=bad,
        notes=[bad, {bad: [bad]}],
        headline={bad: bad, "n": bad},
        table=[
            {"subject": bad, "class": bad, "dice": bad, bad: bad},
            {"dice": float("nan"), "subject": 0.5, "reasons": [bad]},
        ],
        cost={"updates": bad, bad: bad},
        environment={bad: bad},
        digests={"code": bad},
    )
    for name, value in {
        "config": {"name": bad, bad: bad, "list": [bad]},
        "result": result,
        "figures/captions": {"a.png": bad},
    }.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    rows = [
        dict(kind="train", step=s, loss=1 / (s + 1), note=bad, training=bad, **{bad: s})
        for s in range(9)
    ] + [dict(kind="panel", step=s, pairing=s, **{bad: -s}) for s in (0, 8)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder
