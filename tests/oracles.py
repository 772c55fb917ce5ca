"""Definitions in plain Python floats, one number at a time, sharing no code with the package.

Only ``per_element`` knows tensors: it takes them apart and puts the results together.
"""

import math

import torch


def normal_log_density(value: float, mean: float, std: float) -> float:
    """Log of the bell curve."""
    z = (value - mean) / std
    return -0.5 * z * z - math.log(std * math.sqrt(2 * math.pi))


def normal_divergence(mean_p: float, std_p: float, mean_q: float, std_q: float) -> float:
    """Relative entropy of two bell curves."""
    gap = mean_p - mean_q
    return math.log(std_q / std_p) + (std_p**2 + gap**2) / (2 * std_q**2) - 0.5


def clean_and_noise(kind: str, output: float, latent: float, alpha_bar: float):
    """Solve ``latent = a clean + b noise`` together with what ``output`` is."""
    a, b = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
    if kind == "epsilon":
        noise = output
        return (latent - b * noise) / a, noise
    if kind == "sample":
        clean = output
        return clean, (latent - a * clean) / b
    # (latent, output) is (clean, noise) turned by the angle whose cosine is a.
    return a * latent - b * output, b * latent + a * output


def boundary(clean: float, latent: float, timestep: int, sigma_data=0.5, scaling=10.0) -> float:
    """Mix by the consistency model's skip and output weights."""
    k = scaling * timestep
    c_skip = sigma_data**2 / (k**2 + sigma_data**2)
    c_out = k / math.sqrt(k**2 + sigma_data**2)
    return c_out * clean + c_skip * latent


def lcm_step(kind, output, latent, timestep, alpha_bar_t, alpha_bar_s, **weights):
    """Return mean, standard deviation and denoised latent."""
    clean, _ = clean_and_noise(kind, output, latent, alpha_bar_t)
    denoised = boundary(clean, latent, timestep, **weights)
    return math.sqrt(alpha_bar_s) * denoised, math.sqrt(1 - alpha_bar_s), denoised


def lcm_inverse(kind, output, latent, timestep_s, alpha_bar_s, alpha_bar_t, **weights):
    """Return the latent at the noisier level."""
    clean, noise = clean_and_noise(kind, output, latent, alpha_bar_s)
    denoised = boundary(clean, latent, timestep_s, **weights)
    return math.sqrt(alpha_bar_t) * denoised + math.sqrt(1 - alpha_bar_t) * noise


def ddim_step(kind, output, latent, alpha_bar_t, alpha_bar_s, eta):
    """Return mean, standard deviation and clean latent."""
    clean, noise = clean_and_noise(kind, output, latent, alpha_bar_t)
    variance = (1 - alpha_bar_s) / (1 - alpha_bar_t) * (1 - alpha_bar_t / alpha_bar_s)
    sigma = eta * math.sqrt(variance)
    mean = math.sqrt(alpha_bar_s) * clean + math.sqrt(1 - alpha_bar_s - sigma**2) * noise
    return mean, sigma, clean


def ddim_inverse(kind, output, latent, alpha_bar_s, alpha_bar_t):
    """Return the latent at the noisier level."""
    clean, noise = clean_and_noise(kind, output, latent, alpha_bar_s)
    return math.sqrt(alpha_bar_t) * clean + math.sqrt(1 - alpha_bar_t) * noise


def scaled_linear_alpha_bar(count: int, first: float, last: float) -> list[float]:
    """Multiply up the signal shares."""
    product, shares = 1.0, []
    for i in range(count):
        u = i / (count - 1)
        root = (1 - u) * math.sqrt(first) + u * math.sqrt(last)
        product *= 1 - root * root
        shares.append(product)
    return shares


def betas(alpha_bar: list[float]) -> list[float]:
    """Return the share of signal that each timestep takes away."""
    return [1 - now / before for before, now in zip([1.0, *alpha_bar], alpha_bar, strict=False)]


def shifted_alpha_bar(alpha_bar: list[float], scale: float, mode: str) -> list[float]:
    """Divide the signal-to-noise ratio, by a power of ``scale`` that grows or not."""
    shifted = []
    for i, share in enumerate(alpha_bar):
        power = i / (len(alpha_bar) - 1) if mode == "interpolated" else 1.0
        ratio = share / (1 - share) / scale**power
        shifted.append(ratio / (1 + ratio))
    return shifted


def waves(guidance_scale: float, width: int) -> list[float]:
    """Embed a guidance scale: sines, cosines, and a zero if the width is odd."""
    half = width // 2
    angles = [1000.0 * (guidance_scale - 1.0) / 10_000.0 ** (k / (half - 1)) for k in range(half)]
    return [*map(math.sin, angles), *map(math.cos, angles), *[0.0] * (width % 2)]


def look_at_pose(azimuth_deg: float, elevation_deg: float, distance: float) -> list[list[float]]:
    """Return a camera-to-world matrix from cross products; undefined straight above or below."""
    a, e = math.radians(azimuth_deg), math.radians(elevation_deg)
    place = [
        distance * math.cos(e) * math.cos(a),
        distance * math.cos(e) * math.sin(a),
        distance * math.sin(e),
    ]
    forward = _unit([-x for x in place])
    right = _unit(_cross(forward, [0.0, 0.0, 1.0]))
    up = _cross(right, forward)
    rows = [[right[i], up[i], -forward[i], place[i]] for i in range(3)]
    return [*rows, [0.0, 0.0, 0.0, 1.0]]


def _cross(a: list[float], b: list[float]) -> list[float]:
    return [
        a[1] * b[2] - a[2] * b[1],
        a[2] * b[0] - a[0] * b[2],
        a[0] * b[1] - a[1] * b[0],
    ]


def _unit(a: list[float]) -> list[float]:
    length = math.sqrt(sum(x * x for x in a))
    return [x / length for x in a]


def per_element(function, latents, levels=()):
    """Apply a function of floats to every element; a level is one number a latent.

    Returns one tensor, or one a returned number.
    """
    shape = latents[0].shape
    spread = [level[..., None, None, None].expand(shape) for level in levels]
    columns = [tensor.flatten().tolist() for tensor in (*latents, *spread)]
    results = [function(*row) for row in zip(*columns, strict=True)]
    if isinstance(results[0], float):
        return torch.tensor(results, dtype=torch.float64).reshape(shape)
    return tuple(
        torch.tensor(column, dtype=torch.float64).reshape(shape)
        for column in zip(*results, strict=True)
    )
