#!/usr/bin/env python3
"""Takes a picture of a command: runs it in a pseudo-terminal and draws what it
printed, with its colours, as an SVG file. Python's standard library is enough.

    scripts/record.py OUT.svg [--columns 104] [--rows 40] [--shown 'keyfold ...'] -- COMMAND ARGS...

Without arguments it takes the picture in the README: the README's search, in docs.
"""

import argparse
import fcntl
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import tempfile
import termios
import unicodedata
from dataclasses import dataclass, replace
from xml.sax.saxutils import escape

FONT_SIZE = 14
CELL = 8.4  # width of a column at that size
LINE = 20  # height of a row
PAD = 16
BAR = 34  # height of the title bar

BACKGROUND, FOREGROUND = "#16181d", "#d7dae0"
# The eight colours, then their bright forms.
PALETTE = (
    "#5c6370 #e06c75 #7ec16e #d9a75b #61afef #c678dd #56b6c2 #d7dae0 "
    "#7f848e #ef7a83 #98d98a #e5c07b #7fc1ff #d690ec #6fcfdb #ffffff"
).split()

ESCAPE = re.compile(r"\x1b\[([0-9;]*)([@-~])|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[@-Z\\-_]")


@dataclass(frozen=True)
class Style:
    colour: str = FOREGROUND
    bold: bool = False
    dim: bool = False
    underline: bool = False

    def apply(self, codes):
        """The style after one SGR sequence such as `1;31`."""
        style = self
        codes = [int(c or 0) for c in codes.split(";")]
        while codes:
            code = codes.pop(0)
            if code == 0:
                style = Style()
            elif code == 1:
                style = replace(style, bold=True)
            elif code == 2:
                style = replace(style, dim=True)
            elif code == 4:
                style = replace(style, underline=True)
            elif code == 22:
                style = replace(style, bold=False, dim=False)
            elif code == 24:
                style = replace(style, underline=False)
            elif code == 39:
                style = replace(style, colour=FOREGROUND)
            elif 30 <= code <= 37:
                style = replace(style, colour=PALETTE[code - 30])
            elif 90 <= code <= 97:
                style = replace(style, colour=PALETTE[code - 90 + 8])
            elif code in (38, 48):  # 256 colours and RGB: not drawn, skipped whole
                del codes[: 2 if codes[:1] == [5] else 4]
        return style


def run(command, columns, rows):
    """What `command` writes to a terminal of that size; its stderr goes to ours."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k != "NO_COLOR"}
    environment |= {"TERM": "xterm-256color", "COLUMNS": str(columns)}
    process = subprocess.Popen(command, stdin=slave, stdout=slave, env=environment)
    os.close(slave)
    output = b""
    while True:
        try:
            chunk = os.read(master, 65536)
        except OSError:  # Linux's way to say that the other end is closed
            break
        if not chunk:
            break
        output += chunk
    os.close(master)
    if process.wait() != 0:
        sys.exit(f"record.py: {command[0]} ended with code {process.returncode}")
    return output.decode("utf-8", "replace")


def lines_of(text):
    """Rows of (style, text) runs."""
    rows, style = [], Style()
    for line in text.replace("\r\n", "\n").rstrip("\n").split("\n"):
        runs, at = [], 0
        for m in ESCAPE.finditer(line):
            runs.append((style, line[at : m.start()]))
            if m.group(2) == "m":
                style = style.apply(m.group(1))
            at = m.end()
        runs.append((style, line[at:]))
        rows.append([(s, t.replace("\r", "")) for s, t in runs if t])
    return rows


def columns_of(text):
    wide = lambda c: 2 if unicodedata.east_asian_width(c) in "WF" else 1
    return sum(0 if unicodedata.combining(c) else wide(c) for c in text)


def draw(rows, columns, title):
    width = round(columns * CELL + 2 * PAD)
    height = BAR + len(rows) * LINE + PAD
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" role="img">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{width}" height="{height}" rx="8" fill="{BACKGROUND}"/>',
    ]
    for i, colour in enumerate(("#ff5f57", "#febc2e", "#28c840")):
        out.append(f'<circle cx="{PAD + 6 + i * 20}" cy="17" r="6" fill="{colour}"/>')
    out.append(
        "<g font-family=\"ui-monospace, 'SF Mono', Menlo, Consolas, 'DejaVu Sans Mono', monospace\" "
        f'font-size="{FONT_SIZE}">'
    )
    for i, row in enumerate(rows):
        column, y = 0, BAR + i * LINE + FONT_SIZE
        for style, text in row:
            inner = text.strip(" ")
            if inner:
                # Every run is fitted into its cells, so that columns stay
                # straight whatever font the viewer has.
                x = PAD + (column + len(text) - len(text.lstrip(" "))) * CELL
                attributes = f'x="{x:.1f}" y="{y}" textLength="{columns_of(inner) * CELL:.1f}"'
                attributes += f' lengthAdjust="spacingAndGlyphs" fill="{style.colour}"'
                if style.bold:
                    attributes += ' font-weight="bold"'
                if style.dim:
                    attributes += ' opacity="0.6"'
                if style.underline:
                    attributes += ' text-decoration="underline"'
                # Viewers join spaces, but not these.
                inner = escape(inner).replace("  ", "\u00a0\u00a0")
                out.append(f"<text {attributes}>{inner}</text>")
            column += columns_of(text)
    return "\n".join([*out, "</g>", "</svg>", ""])


def readme_picture(store):
    """Arguments for the picture in the README, with a store made for it."""
    os.chdir(os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
    with open("README.md", encoding="utf-8") as file:
        command = re.search(r"^cargo run --release -- (search .*) \.$", file.read(), re.M).group(1)
    command += " docs -k 3"
    binary = os.path.join(os.environ.get("CARGO_TARGET_DIR", "target"), "release", "keyfold")
    subprocess.run([binary, "index", ".", "--quiet", "--store", store], check=True, stdout=subprocess.DEVNULL)
    run_this = [binary, *shlex.split(command), "--store", store]
    return ["docs/search.svg", "--shown", f"keyfold {command}", "--", *run_this]


def main():
    with tempfile.TemporaryDirectory() as folder:
        record(sys.argv[1:] or readme_picture(os.path.join(folder, "store")))


def record(arguments):
    if "--" not in arguments:
        sys.exit(__doc__)
    split = arguments.index("--")
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--columns", type=int, default=104)
    parser.add_argument("--rows", type=int, default=40)
    parser.add_argument("--shown", help="the command line to show, if another than the one that is run")
    options = parser.parse_args(arguments[:split])
    command = arguments[split + 1 :]
    shown = options.shown or shlex.join(command)
    prompt = [(Style(colour=PALETTE[2], bold=True), "$ "), (Style(), shown)]
    rows = [prompt, *lines_of(run(command, options.columns, options.rows))]
    with open(options.out, "w", encoding="utf-8") as file:
        file.write(draw(rows, options.columns, shown))


if __name__ == "__main__":
    main()
