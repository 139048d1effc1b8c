# %% [markdown]
# # Permutations by gradient descent
#
# What you will have learned: how a problem whose unknown is a permutation (sorting, matching two graphs, ordering the
# rows of a matrix), one of n!, becomes one for gradient descent in four steps. **Relax** the permutation to a matrix,
# **penalise** what is no permutation, **certify** that the matrix has come near one, and **round** it; what each step
# guarantees, and what decides whether the descent matches two graphs. There is no network in this
# notebook; each cell runs in seconds on a CPU.
#
# One convention holds everywhere: a permutation is an index vector `p` with `y[i] = x[p[i]]`. As a matrix `P[i,
# p[i]] = 1` and `y = P x`.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from shuffle_jax.ops import penalty, permutation, relaxation, rounding

p = jnp.array([2, 0, 1])
print(jnp.array([10.0, 11, 12])[p], permutation.to_matrix(p) @ jnp.array([10.0, 11, 12]))

# %% [markdown]
# ## Relax
#
# Each relaxation turns free parameters into a nonnegative matrix whose rows sum to 1; the temperature decides how
# sharp it is. The number over a picture is the largest error of a column sum: `softmax_rows` and `soft_sort` leave
# the columns free, twenty passes of `sinkhorn` balance them unless the temperature is low, `converged_sinkhorn` goes
# on until they are (or a thousand passes are done), and `orthostochastic` needs no iteration at temperature 1.

# %%
logits, scores = jax.random.normal(jax.random.key(0), (8, 8)), jax.random.normal(jax.random.key(1), (8,))
relaxations = {
    "softmax_rows": lambda t: relaxation.softmax_rows(logits, t),
    "sinkhorn": lambda t: relaxation.sinkhorn(logits, t, 20),
    "converged_sinkhorn": lambda t: relaxation.converged_sinkhorn(logits, t),
    "gumbel_sinkhorn": lambda t: relaxation.gumbel_sinkhorn(logits, t, key=jax.random.key(2)),
    "soft_sort": lambda t: relaxation.soft_sort(scores, t),
    "clamp_normalize": lambda t: relaxation.clamp_normalize(logits, t),
    "orthostochastic": lambda t: relaxation.orthostochastic(logits, t),
}
temperatures = (1.0, 0.3, 0.05)
figure, axes = plt.subplots(3, 7, figsize=(12, 5.6), layout="constrained")
for column, (name, relax) in zip(axes.T, relaxations.items(), strict=True):
    for ax, t in zip(column, temperatures, strict=True):
        matrix = relax(t)
        ax.imshow(matrix, cmap="Blues", vmin=0, vmax=1)
        ax.set_title(f"{float(jnp.abs(matrix.sum(0) - 1).max()):.1g}", fontsize=9)
        ax.set(xticks=[], yticks=[], ylabel=f"T = {t}" if name == "softmax_rows" else "")
    column[-1].set_xlabel(name)

# %% [markdown]
# ## Penalise
#
# Three penalties, each brought to [0, 1]: 1 where all entries are equal, 0 at a permutation. On the left the columns
# are balanced, and a penalty near 0 means a permutation. On the right they are free: the entropy of the rows falls to
# 0 although rows share columns, and l1 - l2 comes close to it. So look at the column sums (dashed) as well.

# %%
temperatures = jnp.geomspace(0.02, 5, 40)
figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained", sharey=True)
paths = {}
for ax, relax in zip(axes, (relaxation.converged_sinkhorn, relaxation.softmax_rows), strict=True):
    path = paths[relax.__name__] = jax.vmap(lambda t, relax=relax: relax(logits, t))(temperatures)
    ax.plot(temperatures, penalty.normalized_l1_minus_l2(path), label="l1 - l2")
    ax.plot(temperatures, penalty.normalized_orthogonality(path), label="orthogonality")
    ax.plot(temperatures, penalty.row_entropy(path), label="entropy of rows")
    ax.plot(temperatures, jnp.abs(path.sum(-2) - 1).max(-1), "k--", label="error of column sums")
    ax.set(title=relax.__name__, xlabel="temperature", xscale="log", ylim=(0, 1.5))
axes[0].legend()
cold = paths["softmax_rows"][0]
print(f"cold softmax: entropy {float(penalty.row_entropy(cold)):.3f},", end=" ")
print("row-argmax is a permutation:", bool(permutation.is_permutation(rounding.argmax(cold))))

# %% [markdown]
# ## Certify
#
# `certificate` proves, where it can, that row-argmax is a permutation P and bounds the distance to it. Along the path
# of falling temperature the proof begins long before the matrix is hard. It is sufficient and not necessary: argmax
# may be right earlier.

# %%
path = paths["converged_sinkhorn"]
proof = rounding.certificate(path)
hard = permutation.to_matrix(rounding.assignment(path))
distance = jnp.sqrt(jnp.square(path - hard).sum((-2, -1)))
right, sure = permutation.is_permutation(rounding.argmax(path)), proof.guaranteed

figure, ax = plt.subplots(figsize=(7, 3), layout="constrained")
ax.fill_between(temperatures, 0, 4, where=right, color="#e6e6e6", label="argmax is a permutation")
ax.fill_between(temperatures, 0, 4, where=sure, color="#b3d4e8", label="and certified")
ax.plot(temperatures, distance, color="#0072b2", label="distance to the rounded matrix")
ax.plot(temperatures[sure], proof.frobenius_bound[sure], "--", color="#d55e00", label="certified bound")
ax.set(xlabel="temperature", xscale="log", ylim=(0, 4))
ax.legend(loc="upper right")
print(f"a permutation up to T = {temperatures[right].max():.2f}, certified up to {temperatures[sure].max():.2f}")

# %% [markdown]
# ## Round
#
# Row-argmax may take a column twice. `greedy` and `assignment` always give a permutation: the first takes the
# largest entry left, again and again, the second has the largest sum there is. `round_straight_through` is hard
# forwards and relaxed backwards.

# %%
matrix = relaxation.softmax_rows(logits, 0.5)
figure, axes = plt.subplots(1, 3, figsize=(8, 3), layout="constrained")
for ax, round_ in zip(axes, (rounding.argmax, rounding.greedy, rounding.assignment), strict=True):
    found = round_(matrix)
    total = float(jnp.take_along_axis(matrix, found[:, None], 1).sum())
    valid = bool(permutation.is_permutation(found))
    ax.imshow(matrix, cmap="Blues")
    ax.plot(found, jnp.arange(8), "o", color="#d55e00" if valid else "#6b6b6b")
    ax.set(title=f"{round_.__name__}: {total:.2f}" + ("" if valid else ", no permutation"), xticks=[], yticks=[])
slope = jax.grad(lambda m: (rounding.round_straight_through(m) @ scores)[0])(matrix)
print("the gradient of the rounded product reaches the matrix:", bool(jnp.allclose(slope[0], scores)))

# %% [markdown]
# ## Sort
#
# `soft_sort` of scores approximates their sorting, and a gradient goes through it. Here eight numbers move until their
# median is 2; through `jnp.sort` the gradient would reach two of them at a time.


# %%
def loss(values):
    ordered = relaxation.soft_sort(values, 0.1) @ values
    return jnp.square((ordered[3] + ordered[4]) / 2 - 2)


step = jax.jit(lambda values: values - 0.1 * jax.grad(loss)(values))
values = scores
for _ in range(400):
    values = step(values)
print("before", np.sort(scores).round(2))
print("after ", np.sort(values).round(2))
print(f"median {jnp.median(values):.1f}")

# %% [markdown]
# ## Match two graphs
#
# A Moebius ladder and a copy with its nodes in another order: find the order. Every node looks like every other, so
# the matrix with all entries equal solves the relaxed problem. Without a penalty all starts end near it, and few round
# to a match. With a penalty that grows from 0 they leave it, each for one of the 32 permutations that match.

# %%
from shuffle_jax.ops.quadratic_assignment import matches, matching_objective
from shuffle_jax.problems.descent import DescentConfig, descend, recorded_steps
from shuffle_jax.problems.generators import erdos_renyi, moebius_ladder, relabelled


def match(hidden, config):
    graphs = jnp.asarray(hidden.a, jnp.float32), jnp.asarray(hidden.b, jnp.float32)
    scale = float(np.linalg.norm(hidden.a, 2)) ** 2
    found = descend(matching_objective, graphs, hidden.size, jax.random.key(0), 32, config, scale)
    return found, int(matches(rounding.assignment(found.matrix), graphs).sum())


ladder, found = relabelled(moebius_ladder(16), seed=0), {}
for name in ("l1_minus_l2", "none"):
    config = DescentConfig(penalty=name)
    found[name], recovered = match(ladder, config)
    print(f"penalty {name}: {recovered} of 32 starts recover the ladder")

# %%
from experiments.matching.figures import Curves, descent_figure

names = {"l1_minus_l2": "with penalty", "none": "without"}
curves = {names[n]: Curves(recorded_steps(config), d.objective, d.penalty) for n, d in found.items()}
figure, axes = plt.subplots(1, 2, figsize=(6, 2.8), layout="constrained")
for ax, name in zip(axes, names, strict=True):
    ax.imshow(found[name].matrix[0], cmap="Blues", vmin=0, vmax=1)
    ax.set(title=names[name], xticks=[], yticks=[])
descent_figure(curves, "Moebius ladder, 16 nodes")

# %% [markdown]
# In a random graph no two nodes look alike, and the relaxed problem, which is convex, has its minimum 0 at the hidden
# permutation: no penalty is needed. What matters is the step. That of AutoShuffleNet, "clamp", divides columns and rows
# by their sums; the division undoes whatever only scales rows and columns, so the descent stands still at matrices
# that are no minimum, each start at its own. "tangent", the default, first takes from the step what changes the sums.
# Then only what is cut off at 0 is left to undo: all starts end at one matrix, near enough to the minimum to round.

# %%
graph = relabelled(erdos_renyi(16), seed=0)
for kind in ("clamp", "tangent"):
    end, recovered = match(graph, DescentConfig(relaxation=kind, penalty="none"))
    low, high = end.objective[:, -1].min(), end.objective[:, -1].max()
    print(f"{kind}: {recovered} of 32 starts recover the graph; |A M - M B|^2 ends at {low:.1f} to {high:.1f}")

# %% [markdown]
# So the step decides on random graphs and the penalty on regular ones, and the default has both. `python -m
# experiments.graph_matching` compares all relaxations and penalties.
