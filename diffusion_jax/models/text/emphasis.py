"""Weights on the words of a prompt, in the notation of the web interfaces.

(word)        1.1 times as strong; ((word)) 1.21 times
(word:1.3)    1.3 times
[word]        divided by 1.1
\\( \\) \\[ \\]   the characters themselves
"""

import re

ROUND, SQUARE = 1.1, 1 / 1.1
TOKEN = re.compile(
    r"\\\(|\\\)|\\\[|\\\]|\\\\|\\|\(|\[|:\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*\)|\)|\]|[^\\()\[\]:]+|:"
)  # fmt: skip


def parse(prompt: str) -> list[tuple[str, float]]:
    """The pieces of a prompt with their weights, neighbours of equal weight joined.

    A bracket that is not closed counts to the end; one that was not opened is a character.
    """
    pieces: list[list] = []
    open_round: list[int] = []
    open_square: list[int] = []

    def multiply(start: int, factor: float) -> None:
        for piece in pieces[start:]:
            piece[1] *= factor

    for match in TOKEN.finditer(prompt):
        text, weight = match[0], match[1]
        if text.startswith("\\"):
            pieces.append([text[1:] or "\\", 1.0])
        elif text == "(":
            open_round.append(len(pieces))
        elif text == "[":
            open_square.append(len(pieces))
        elif weight is not None and open_round:
            multiply(open_round.pop(), float(weight))
        elif text == ")" and open_round:
            multiply(open_round.pop(), ROUND)
        elif text == "]" and open_square:
            multiply(open_square.pop(), SQUARE)
        else:
            pieces.append([text, 1.0])
    for start in open_round:
        multiply(start, ROUND)
    for start in open_square:
        multiply(start, SQUARE)

    joined: list[tuple[str, float]] = []
    for text, weight in pieces:
        if joined and joined[-1][1] == weight:
            joined[-1] = (joined[-1][0] + text, weight)
        else:
            joined.append((text, weight))
    return joined or [("", 1.0)]
