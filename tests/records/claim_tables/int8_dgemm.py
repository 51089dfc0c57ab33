"""Small tables that support each claim of int8_dgemm, and tables that contradict it."""

import pandas as pd


def accuracy(errors, native, phi=0.1, n=256, **more):
    """Rows of one case: `errors` by slices, and native DGEMM's error."""
    rows = [{"method": "scheme_one", "slices": s, "error_roundoffs": e} for s, e in errors.items()]
    rows.append({"method": "torch", "slices": 0, "error_roundoffs": native})
    return pd.DataFrame(rows).assign(quantity="accuracy", phi=phi, n=n, **more)


def decaying(bits):
    return accuracy({s: 1e12 * 2.0 ** (-bits * s) for s in range(3, 7)}, native=1e-6)


def needing(narrow, wide):
    return pd.concat(
        accuracy({s: 0.5 if s >= least else 99.0 for s in range(3, 13)}, native=1.0, phi=phi)
        for phi, least in ((0.1, narrow), (2.0, wide))
    )


def digests(method, variations, values):
    rows = [{"variation": v, "digest": d} for v, d in zip(variations, values, strict=True)]
    return pd.DataFrame(rows).assign(quantity="identity", n=256, method=method, slices=9)


def grouped(single):
    rows = [{"method": "scheme_one", "digest": "a"}, {"method": "scheme_one_ungrouped", "digest": single}]
    return pd.DataFrame(rows).assign(quantity="accuracy", n=256, phi=0.1, slices=9)


def times(ours, product=0.01, native=0.1):
    rows = [
        {"method": method, "slices": slices, "repetition": r, "call_seconds": seconds * (1 + 0.01 * r)}
        for r in range(3)
        for method, slices, seconds in (
            ("scheme_one", 9, ours),
            ("int8_product", 0, product),
            ("torch", 0, native),
            ("numpy", 0, 2 * native),
        )
    ]
    return pd.DataFrame(rows).assign(quantity="time", n=2048)


def rule(error, bound, slices=8):
    row = {"slices": slices, "mean_lost_bits": 1.0, "relative_error": error, "bound_relative": bound}
    return pd.DataFrame([row]).assign(quantity="automatic_rule", n=256)


THREADS, TRANSFORMS = ["reference", "one thread"], ["reference", "transposed"]
SUPPORTING = {
    "int8-bits-per-slice": decaying(7.0),
    "int8-nine-slices": accuracy({9: 0.2}, native=1.0),
    "int8-slices-grow-with-spread": needing(8, 10),
    "int8-bit-identity": digests("scheme_one", THREADS, "aa"),
    "int8-dgemm-not-identical": digests("torch", THREADS, "ab"),
    "int8-invariance": digests("scheme_one", TRANSFORMS, "aa"),
    "int8-grouping": grouped("a"),
    "int8-operation-count": times(0.5),
    "int8-slower-than-dgemm": times(0.5),
    "int8-automatic-rule": rule(1.0, 100.0),
    "int8-bound-refuses": rule(1.0, 100.0),
    "int8-exact-unit": pd.DataFrame({"bits": [7, 7]}),
}
CONTRADICTING = {
    "int8-bits-per-slice": decaying(5.0),
    "int8-nine-slices": accuracy({9: 3.0}, native=1.0),
    "int8-slices-grow-with-spread": needing(9, 9),
    "int8-bit-identity": digests("scheme_one", THREADS, "ab"),
    "int8-dgemm-not-identical": digests("torch", THREADS, "aa"),
    "int8-invariance": digests("scheme_one", TRANSFORMS, "ab"),
    "int8-grouping": grouped("b"),
    "int8-operation-count": times(1.5),
    "int8-slower-than-dgemm": times(0.05),
    "int8-automatic-rule": rule(1e-15, 100.0),
    "int8-bound-refuses": rule(1.0, 1e-3),
    "int8-exact-unit": pd.DataFrame({"bits": [7, 6]}),
}
