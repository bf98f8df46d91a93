"""Particles conditioned on observations, again where they show what a better twist is."""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PRNGKeyArray

from smdp_jax.scores.looks import Looks, Tables
from smdp_jax.sde import Args, ScoreFn, State
from smdp_jax.solve.conditioned import Conditioned, ConditionInfo
from smdp_jax.solve.conditioning import Conditioning
from smdp_jax.solve.particles import (
    choose,
    family_doubt,
    independent_number,
    stated_error,
    systematic,
)
from smdp_jax.solve.smoothing import Smoothed
from smdp_jax.solve.tempering import Tempered

_ROUNDS = 3
_PILOTS = 64, 256  # paths that a twist is learned from again: at least, at most
_ENOUGH, _SURE = 1 / 4, 0.4  # independent draws per particle, nats: no further round


class _Attempt(NamedTuple):
    end: Tempered
    carried: Smoothed
    log_evidence: Array
    error: Array
    independent: Array

    def beats(self, other: "_Attempt") -> Array:
        """By the evidence, which is low where particles missed something; else by relatives."""
        gain, unsure = self.log_evidence - other.log_evidence, self.error + other.error
        return (gain > unsure) | (gain > -2 * unsure) & (self.independent > other.independent)


class _Rounds(eqx.Module):
    """All that rounds share; particles are flat rows (count, entries)."""

    plan: Conditioning
    looks: Looks
    score: ScoreFn
    draws: State
    args: Args
    count: int = eqx.field(static=True)

    @property
    def unravel(self) -> Callable[[Array], State]:
        """Of one flat state."""
        return ravel_pytree(jax.tree.map(lambda x: x[0], self.draws))[1]

    def attempt(self, key: PRNGKeyArray, tables: Tables) -> _Attempt:
        """Temper and carry particles, steered by these tables."""
        k_pick, k_temper, k_smooth = jax.random.split(key, 3)
        picks, families = _picks(k_pick, self.draws, self.count)
        start = jax.vmap(lambda x: ravel_pytree(x)[0])(choose(self.draws, picks))
        start = start if self.plan.split is None else self.plan.split.pin(start)
        plan = dataclasses.replace(self.plan, sights=self.looks.sights(tables))
        how = (self.unravel, self.args)
        end = plan.temper(k_temper, self.score, start, families, *how)
        carried = plan.carry(k_smooth, self.score, end.x, end.families, *how)
        doubt, weights = end.doubt + carried.doubt, carried.log_weights
        shared = family_doubt(carried.families[0], weights, families)
        error = stated_error(doubt.at[0].max(shared))
        number = independent_number(carried.families, weights, carried.x)
        return _Attempt(end, carried, end.log_evidence + carried.log_evidence, error, number)

    def learned(self, key: PRNGKeyArray, tables: Tables, ends: Array) -> Tables:
        """Tables corrected on paths that begin where particles ended up."""
        pilots, split = min(self.count, _PILOTS[1]), self.plan.split
        pilots -= 0 if split is None else pilots % split.count
        rows = jnp.linspace(0, self.count - 1, pilots).astype(int)
        paths = self.plan.wander(key, self.score, ends[rows], self.unravel, self.args)
        return self.looks.learned(tables, paths)

    def best(self, key: PRNGKeyArray, tables: Tables) -> tuple[Array, _Attempt]:
        """Attempts with better and better tables, until particles are worth enough; how many."""

        def few(state: tuple) -> Array:
            i, _, best, _ = state
            enough = (best.independent >= _ENOUGH * self.count) & (best.error < _SURE)
            return (i == 0) | (i < _ROUNDS) & ~enough

        def again(state: tuple) -> tuple:
            i, tables, best, ends = state
            k_attempt, k_paths = jax.random.split(jax.random.fold_in(key, i))
            learned = lambda tables: self.learned(k_paths, tables, ends)
            tables = jax.lax.cond(i > 0, learned, lambda tables: tables, tables)
            new = self.attempt(k_attempt, tables)
            better = (i == 0) | new.beats(best)
            best = jax.tree.map(lambda a, b: jnp.where(better, a, b), new, best)
            return i + 1, tables, best, new.end.x

        shapes = jax.eval_shape(self.attempt, key, tables)
        none = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        start = (jnp.zeros((), int), tables, none, none.end.x)
        taken, _, best, _ = jax.lax.while_loop(few, again, start)
        return taken, best


@eqx.filter_jit
def conditioned(
    plan: Conditioning,
    looks: Looks,
    tables: Tables,
    score: ScoreFn,
    draws: State,
    key: PRNGKeyArray,
    args: Args,
    count: int,
    resample: bool,
    learn: bool,
) -> Conditioned:
    """Temper and carry particles; in some rounds, where a better twist is to be learned."""
    k_rounds, k_last = jax.random.split(key)
    rounds = _Rounds(plan, looks, score, draws, args, count)
    if learn and count >= _PILOTS[0]:
        taken, best = rounds.best(k_rounds, tables)
    else:
        taken, best = jnp.ones((), int), rounds.attempt(k_rounds, tables)
    end, carried = best.end, best.carried
    x, log_weights = carried.x, jax.nn.log_softmax(carried.log_weights)
    if resample:
        x = x[systematic(k_last, log_weights)]
        log_weights = jnp.full_like(log_weights, -math.log(count))
    if plan.split is not None:
        x, log_weights = plan.split.pin((x, log_weights))
    sizes = jnp.concatenate([carried.ess, jnp.full(1, count, carried.ess.dtype)])
    tempered = (end.temperatures, end.acceptance, end.step_sizes, jnp.asarray(end.foreign))
    told = (*tempered, best.independent, taken, jnp.isfinite(x).all(axis=1))
    info = ConditionInfo(plan.ts, sizes, carried.resampled, *told)
    samples = jax.vmap(rounds.unravel)(x)
    return Conditioned(samples, log_weights, best.log_evidence, best.error, info)


def _picks(key: PRNGKeyArray, draws: State, count: int) -> tuple[Array, Array]:
    """Every draw as often as every other, at random; and which draw each particle is."""
    number = jax.tree.leaves(draws)[0].shape[0]
    keys = [jax.random.fold_in(key, i) for i in range(-(-count // number))]
    picks = jnp.concatenate([jax.random.permutation(k, number) for k in keys])[:count]
    return picks, picks if number <= count else jnp.arange(count, dtype=picks.dtype)
