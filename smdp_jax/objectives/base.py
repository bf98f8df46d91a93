"""What an objective is: a loss on one window of one path, and what its minimiser is."""

from typing import Any, Literal

from jaxtyping import Array, PRNGKeyArray

from smdp_jax.checks import check_holds
from smdp_jax.objectives.step_miss import step_miss
from smdp_jax.scores.learned import LearnedScore
from smdp_jax.scores.preconditioner import Preconditioner
from smdp_jax.sde import SDE, Scalar
from smdp_jax.trajectories import Trajectories, window

Kind = Literal["score", "correction"]


def check_fits(windows: tuple[int, ...], data: Trajectories) -> None:
    """Check that windows are no longer than the paths."""
    what = f"stored times, for windows of {(most := max(windows))} steps"
    check_holds("trajectories", data.num_times, most + 1, what)


class Objective:
    """A loss that training minimises over random windows of stored paths.

    A subclass has ``windows`` (steps per window, in the order of training; 0 is a single state) and
    ``loss``; the defaults of the rest learn a score.
    """

    windows: tuple[int, ...]
    first_time: int = 0
    honours_masks: bool = True

    @property
    def noise_level(self) -> float:
        """The alpha of the backward step that it trains."""
        return 1.0

    def kind(self, sde: SDE) -> str:
        """Name what is learned of a process.

        Parameters
        ----------
        sde : SDE
            The process.

        Returns
        -------
        str
            "score", "correction", "step" or another ``kind`` of what ``learned`` builds.
        """
        return "score"

    def check(self, sde: SDE, data: Trajectories) -> None:
        """Refuse paths that do not suit; ``fit`` does so for all that it is given.

        Parameters
        ----------
        sde, data
            The process, and paths to learn from, or held-out ones.
        """

    def prepare(self, sde: SDE, data: Trajectories) -> Any:
        """Compute constants of the loss.

        Parameters
        ----------
        sde, data
            The process, and stored paths.

        Returns
        -------
        pytree
            Handed to ``loss``.
        """
        return None

    def scales(self, sde: SDE, data: Trajectories, precondition: bool) -> Any:
        """Measure what the learned term keeps beside its network.

        Parameters
        ----------
        sde, data, precondition
            The process, stored paths, and whether there is to be a ``Preconditioner``.

        Returns
        -------
        pytree or None
            Handed to ``learned``.
        """
        return Preconditioner.of(sde, data) if precondition else None

    def learned(self, sde: SDE, model: Any, variables: Any, scales: Any, ts: Any) -> Any:
        """Build what is learned.

        Parameters
        ----------
        sde, model, variables, scales, ts
            The process, the network, and its parameters; from ``scales``, or of the term that
            training goes on from; times of the paths, shape (times,).

        Returns
        -------
        LearnedScore, StepCorrection, LearnedStep, ...
            Called by ``loss``, and returned by ``fit`` with averaged parameters.
        """
        return LearnedScore(model, variables, scales, ts=ts[:: ts.shape[0] - 1])

    def split(self, data: Trajectories) -> tuple[Trajectories, Trajectories | None]:
        """Set paths aside that training must not see, for ``finish``.

        Parameters
        ----------
        data : Trajectories
            All paths.

        Returns
        -------
        tuple (Trajectories, Trajectories or None)
            The paths to learn from, and the others; by default all, and none.
        """
        return data, None

    def seen(self, model: Any, scales: Any, data: Trajectories) -> tuple[Any, Any, Any]:
        """Return what the network is shown, for its initial parameters.

        Parameters
        ----------
        model, scales, data
            The network, what ``scales`` returned, and stored paths.

        Returns
        -------
        tuple
            Time, state and conditions as ``learned`` passes them on.
        """
        return data.ts[-1], data.at(0, -1), data.args_of(0)

    def finish(self, learned: Any, held_out: Trajectories, key: PRNGKeyArray) -> Any:
        """Complete what is learned after training.

        Parameters
        ----------
        learned, held_out, key
            With averaged parameters; paths of ``split``, or the validation; randomness.

        Returns
        -------
        Any
            What ``fit`` returns; by default the same.
        """
        return learned

    def cut(self, data: Trajectories, sample: Any, start: Any, steps: int) -> Trajectories:
        """Cut what ``loss`` is shown from one path.

        Parameters
        ----------
        data, sample, start, steps
            Stored paths, which of them, the index of the first time, and how many steps.

        Returns
        -------
        Trajectories
            By default the window of ``steps + 1`` consecutive states.
        """
        return window(data, sample, start, steps)

    def loss(
        self, learned: Any, sde: SDE, window: Trajectories, constants: Any, key: PRNGKeyArray
    ) -> Scalar:
        """Compute the loss of one window.

        Parameters
        ----------
        learned, sde, window, constants, key
            What ``learned`` returned; the process; one window, Trajectories without sample axis;
            what ``prepare`` returned; randomness.

        Returns
        -------
        scalar
            The loss.

        Raises
        ------
        NotImplementedError
            If a subclass has none.
        """
        raise NotImplementedError(f"{type(self).__name__} must have a loss")

    def miss(self, sde: SDE, learned: Any, data: Trajectories, key: PRNGKeyArray) -> Array:
        """Measure by how much one backward step misses the data, by time.

        Parameters
        ----------
        sde, learned, data, key
            The process, what was learned, held-out paths or those learned from, and randomness.

        Returns
        -------
        array (times - 1,)
            By default ``step_miss``.
        """
        return step_miss(sde, learned, data, key=key, noise_level=self.noise_level)
