"""Small tables that support each claim of int8_dgemm, and tables that contradict it."""

import pandas as pd


def accuracy(errors, native, phi=0.1, n=256, method="scheme_one", **more):
    """Rows of one case: `errors` by count, and native DGEMM's error."""
    rows = [{"method": method, "count": c, "error_roundoffs": e} for c, e in errors.items()]
    rows.append({"method": "torch", "count": 0, "error_roundoffs": native})
    return pd.DataFrame(rows).assign(quantity="accuracy", phi=phi, n=n, **more)


def decaying(bits, method="scheme_one"):
    return accuracy({c: 1e12 * 2.0 ** (-bits * c) for c in range(3, 7)}, native=1e-6, method=method)


def needing(narrow, wide):
    return pd.concat(
        accuracy({s: 0.5 if s >= least else 99.0 for s in range(3, 13)}, native=1.0, phi=phi)
        for phi, least in ((0.1, narrow), (2.0, wide))
    )


def digests(method, variations, values):
    rows = [{"variation": v, "digest": d} for v, d in zip(variations, values, strict=True)]
    return pd.DataFrame(rows).assign(quantity="identity", n=256, method=method, count=9)


def grouped(single):
    rows = [{"method": "scheme_one", "digest": "a"}, {"method": "scheme_one_ungrouped", "digest": single}]
    return pd.DataFrame(rows).assign(quantity="accuracy", n=256, phi=0.1, count=9)


def times(one=0.5, two=0.17, product=0.01, native=0.1):
    rows = [
        {"method": method, "count": count, "repetition": r, "call_seconds": seconds * (1 + 0.01 * r)}
        for r in range(3)
        for method, count, seconds in (
            ("scheme_one", 9, one),
            ("scheme_two", 15, two),
            ("int8_product", 0, product),
            ("torch", 0, native),
            ("numpy", 0, 2 * native),
        )
    ]
    return pd.DataFrame(rows).assign(quantity="time", n=2048)


def adversarial(**row):
    return pd.DataFrame([row]).assign(quantity="adversarial", n=256)


def rule(error, bound, count=8):
    careless = {"chosen_by": "published rule", "mean_lost_bits": 1.0, "refused": False}
    return adversarial(**careless, count=count, relative_error=error, bound_relative=bound)


def chosen(refused, error):
    return adversarial(chosen_by="bound", refused=refused, error_roundoffs=error)


def guarantee(refused=False, asked=256.0, bound=40.0, error=2.0):
    row = {"asked": "dgemm", "asked_roundoffs": asked, "bound_roundoffs": bound, "error_roundoffs": error}
    return pd.DataFrame([{**row, "refused": refused, "phi": 2.0}]).assign(quantity="guarantee", n=256)


def factors(int8_survives_to, emulated):
    """Backward errors over two conditions, and the condition up to which plain INT8 survives."""
    sides = (("int8", 0, 1e-3), ("native", 0, 1e-16), ("scheme_one", 9, emulated), ("scheme_two", 15, emulated))
    rows = [
        {
            "method": method,
            "count": count,
            "condition": condition,
            "target_condition": condition,
            "broke_down": method == "int8" and condition > int8_survives_to,
            "backward_error": None if method == "int8" and condition > int8_survives_to else error,
        }
        for condition in (1e2, 1e8)
        for method, count, error in sides
    ]
    about = {"quantity": "factorization", "factorization": "cholesky", "matrix": "spectrum", "n": 256}
    return pd.DataFrame(rows).assign(**about)


def kinds(different):
    row = {"different_kinds": different, "special_entries": 100}
    return pd.DataFrame([row]).assign(quantity="non_finite")


THREADS, TRANSFORMS = ["reference", "one thread"], ["reference", "transposed"]
SUPPORTING = {
    "int8-bits-per-slice": decaying(7.0),
    "int8-nine-slices": accuracy({9: 0.2}, native=1.0),
    "int8-slices-grow-with-spread": needing(8, 10),
    "int8-bit-identity": digests("scheme_one", THREADS, "aa"),
    "int8-dgemm-not-identical": digests("torch", THREADS, "ab"),
    "int8-invariance": digests("scheme_one", TRANSFORMS, "aa"),
    "int8-grouping": grouped("a"),
    "int8-operation-count": times(one=0.5),
    "int8-slower-than-dgemm": times(one=0.5),
    "int8-scheme-two-operation-count": times(two=0.17),
    "int8-scheme-two-faster": times(one=0.5, two=0.17),
    "int8-scheme-two-speed": times(two=0.09),
    "int8-bits-per-modulus": decaying(3.8, "scheme_two"),
    "int8-scheme-two-accuracy": accuracy({15: 0.2}, native=1.0, method="scheme_two"),
    "int8-guarantee-kept": guarantee(),
    "int8-dgemm-guaranteed": guarantee(),
    "int8-adversarial-refused": chosen(True, None),
    "int8-plain-breaks-down": factors(1e4, 1e-16),
    "int8-emulation-factorizes": factors(1e4, 1e-16),
    "int8-non-finite": kinds(0),
    "int8-automatic-rule": rule(1.0, 100.0),
    "int8-bound-refuses": rule(1.0, 100.0),
    "int8-exact-unit": pd.DataFrame({"int8_is_exact": [True, True]}),
}
CONTRADICTING = {
    "int8-bits-per-slice": decaying(5.0),
    "int8-nine-slices": accuracy({9: 3.0}, native=1.0),
    "int8-slices-grow-with-spread": needing(9, 9),
    "int8-bit-identity": digests("scheme_one", THREADS, "ab"),
    "int8-dgemm-not-identical": digests("torch", THREADS, "aa"),
    "int8-invariance": digests("scheme_one", TRANSFORMS, "ab"),
    "int8-grouping": grouped("b"),
    "int8-operation-count": times(one=1.5),
    "int8-slower-than-dgemm": times(one=0.05),
    "int8-scheme-two-operation-count": times(two=0.4),
    "int8-scheme-two-faster": times(one=0.17, two=0.17),
    "int8-scheme-two-speed": times(two=0.17),
    "int8-bits-per-modulus": decaying(2.0, "scheme_two"),
    "int8-scheme-two-accuracy": accuracy({15: 3.0}, native=1.0, method="scheme_two"),
    "int8-guarantee-kept": guarantee(error=41.0),
    "int8-dgemm-guaranteed": guarantee(refused=True),
    "int8-adversarial-refused": chosen(False, 1e15),
    "int8-plain-breaks-down": factors(1e9, 1e-16),
    "int8-emulation-factorizes": factors(1e4, 1e-12),
    "int8-non-finite": kinds(3),
    "int8-automatic-rule": rule(1e-15, 100.0),
    "int8-bound-refuses": rule(1.0, 1e-3),
    "int8-exact-unit": pd.DataFrame({"int8_is_exact": [True, False]}),
}
