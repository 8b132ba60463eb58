"How far two colours stand apart, as WCAG defines it."


def rgb(colour: str) -> tuple[int, ...]:
    "#rrggbb as three numbers from 0 to 255."
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


def luminance(colour) -> float:
    "Relative luminance of three numbers from 0 to 255."
    channels = [c / 255 for c in colour]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b) -> float:
    "How many times brighter the brighter of two colours is."
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)
