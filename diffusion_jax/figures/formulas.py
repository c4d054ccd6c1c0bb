"""The formulas of the report as MathML, which browsers set and screen readers read without any script."""

from collections.abc import Callable


def _i(name: str) -> str:
    return f"<mi>{name}</mi>"


def _o(sign: str) -> str:
    return f"<mo>{sign}</mo>"


def _row(*parts: str) -> str:
    return f"<mrow>{''.join(parts)}</mrow>"


def _sub(base: str, index: str) -> str:
    return f"<msub>{base}{index}</msub>"


def _squared(base: str) -> str:
    return f"<msup>{base}<mn>2</mn></msup>"


def _hat(base: str) -> str:
    return f'<mover accent="true">{base}<mo>^</mo></mover>'


def _call(function: str, *arguments: str) -> str:
    return _row(function, _o("("), _o(",").join(arguments), _o(")"))


def _norm_squared(*parts: str) -> str:
    return _squared(_row(_o("‖"), *parts, _o("‖")))


def _block(*parts: str) -> str:
    return f'<math display="block">{_row(*parts)}</math>'


def inline(letter: str, index: str = "") -> str:
    """A symbol, with an index if there is one, inside a sentence."""
    return f"<math>{_sub(_i(letter), _i(index)) if index else _i(letter)}</math>"


_T, _S, _C = _i("t"), _i("s"), _i("c")
_EPSILON = _i("&epsilon;")
_X_T, _X_S, _X_0 = _sub(_i("x"), _T), _sub(_i("x"), _S), _sub(_i("x"), "<mn>0</mn>")
_ALPHA_T, _SIGMA_T = _sub(_i("&alpha;"), _T), _sub(_i("&sigma;"), _T)
_ALPHA_S, _SIGMA_S = _sub(_i("&alpha;"), _S), _sub(_i("&sigma;"), _S)
_X_HAT, _EPSILON_HAT = _sub(_hat(_i("x")), "<mn>0</mn>"), _hat(_EPSILON)
# Estimates, inside a sentence.
X_HAT, EPSILON_HAT = f"<math>{_X_HAT}</math>", f"<math>{_EPSILON_HAT}</math>"
_THETA = _i("&theta;")
_NULL = _i("∅")
_NORMAL = _i("&Nscr;")

FORWARD = _block(
    _X_T, _o("="), _ALPHA_T, _X_0, _o("+"), _SIGMA_T, _EPSILON, _o(","), '<mspace width="1.2em"/>',
    _EPSILON, _o("&sim;"), _call(_NORMAL, "<mn>0</mn>", _i("I")),
)  # fmt: skip

# What the network is trained to give, by the name of the prediction.
_TARGETS: dict[str, tuple[str, str]] = {
    "epsilon": (_EPSILON, _EPSILON),
    "sample": (_X_0, _i("x")),
    "v": (_row(_ALPHA_T, _EPSILON, _o("&minus;"), _SIGMA_T, _X_0), _i("v")),
    "score": (_row(_o("&minus;"), _EPSILON, _o("/"), _SIGMA_T), _i("s")),
    "velocity": (_row(_EPSILON, _o("&minus;"), _X_0), _i("u")),
}


def loss(prediction: str) -> str:
    """The weighted mean squared error of a prediction; of the denoised image for one that is not in the table."""
    target, network = _TARGETS.get(prediction, (_X_0, _i("D")))
    target = f"{_o('(')}{target}{_o(')')}" if prediction in ("v", "score", "velocity") else target
    expectation = _sub(_i("&Eopf;"), _row(_X_0, _o(","), _EPSILON, _o(","), _T))
    error = _norm_squared(target, _o("&minus;"), _call(_sub(network, _THETA), _X_T, _T, _C))
    return _block(_i("L"), _o("="), expectation, _o("["), _i("w"), _o("("), _T, _o(")"), error, _o("]"))


def _ddim() -> str:
    return _block(_X_S, _o("="), _ALPHA_S, _X_HAT, _o("+"), _SIGMA_S, _EPSILON_HAT)


def _ddpm() -> str:
    return _block(
        _X_S, _o("&sim;"), _i("q"), _o("("), _X_S, _o("|"), _X_T, _o(","), _X_HAT, _o(")"),
    )  # fmt: skip


_STEPS: dict[str, Callable[[], str]] = {"ddim": _ddim, "ddpm": _ddpm}


def sampler_step(sampler: str) -> str:
    """One step from time t to the earlier time s; empty for a sampler whose step is no single line."""
    return _STEPS[sampler]() if sampler in _STEPS else ""


def _output(condition: str) -> str:
    return _call(_sub(_i("f"), _THETA), _X_T, _T, condition)


GUIDANCE = _block(
    _hat(_i("f")),
    _o("="),
    _output(_NULL),
    _o("+"),
    _i("g"),
    _o("("),
    _output(_C),
    _o("&minus;"),
    _output(_NULL),
    _o(")"),
)

_LABEL = _i("y")
_READ = _row(_sub(_i("p"), _i("&phi;")), _o("("), _LABEL, _o("|"), _X_T, _o(","), _T, _o(")"))
CLASSIFIER_LOSS = _block(
    _i("L"), _o("="), _sub(_i("&Eopf;"), _row(_X_0, _o(","), _EPSILON, _o(","), _T)), _o("["), _o("&minus;"),
    _i("log"), _READ, _o("]"),
)  # fmt: skip
CLASSIFIER_GUIDANCE = _block(
    _hat(_i("&mu;")), _o("="), _i("&mu;"), _o("+"), _i("g"), _i("&Sigma;"),
    _sub(_o("&nabla;"), _X_T), _i("log"), _READ,
)  # fmt: skip

_MU_1, _MU_2 = (_sub(_i("&mu;"), f"<mn>{i}</mn>") for i in (1, 2))
_COVARIANCE_1, _COVARIANCE_2 = (_sub(_i("&Sigma;"), f"<mn>{i}</mn>") for i in (1, 2))
_ROOT = (
    f"<msup>{_row(_o('('), _COVARIANCE_1, _COVARIANCE_2, _o(')'))}{_row('<mn>1</mn>', _o('/'), '<mn>2</mn>')}</msup>"
)

FRECHET = _block(
    _squared(_i("d")), _o("="), _norm_squared(_MU_1, _o("&minus;"), _MU_2), _o("+"),
    _i("tr"), _o("("), _COVARIANCE_1, _o("+"), _COVARIANCE_2, _o("&minus;"), "<mn>2</mn>", _ROOT, _o(")"),
)  # fmt: skip
