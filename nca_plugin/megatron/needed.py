"""Computes how many samples a run of Megatron-LM reads until it ends."""

from typing import Any

from megatron.core.num_microbatches_calculator import get_current_global_batch_size, update_num_microbatches

#: Numbers of samples of training, validation and test; None for one epoch.
Samples = list[int | None]


def needed_samples(args: Any, asked: Samples) -> Samples:
    """Return the numbers of samples that a run reads until its end, including those before it was resumed.

    Megatron asks for as many as if the whole run had its present batch size. If the batches were larger before, the
    data would end too early.
    """
    train, valid, test = asked
    if not getattr(args, "iteration", 0) or args.skip_train or args.phase_transition_iterations:
        return asked
    return [None if train is None else max(train, _training(args)), _validation(args, valid), test]


def changed_end(args: Any, asked: int | None) -> str | None:
    """Return a warning if a resumed run will not end after `asked` samples, as its batch size changed; else None."""
    if not getattr(args, "iteration", 0) or args.skip_train or args.phase_transition_iterations or asked is None:
        return None
    consumed, end = args.consumed_train_samples, _training(args)
    if end == asked:
        return None
    way_out = ""
    if args.step_batch_size_schedule is None and asked > consumed:
        iterations = args.iteration + -(-(asked - consumed) // args.global_batch_size)
        way_out = f" (--train-iters {iterations} would end there)"
    return (
        f"warning: iteration {args.iteration} is resumed after {consumed:,} samples with another batch size, so that "
        f"iteration {args.train_iters} ends after {end:,} samples rather than {asked:,}{way_out}"
    )


def _training(args: Any) -> int:
    samples, iterations = int(args.consumed_train_samples), range(args.iteration, args.train_iters)
    if args.step_batch_size_schedule is None:
        return samples + len(iterations) * int(args.global_batch_size)
    for _ in iterations:
        update_num_microbatches(samples, consistency_check=False)
        samples += int(get_current_global_batch_size())
    update_num_microbatches(args.consumed_train_samples, consistency_check=False)
    return samples


def _validation(args: Any, asked: int | None) -> int | None:
    if not asked or not args.eval_interval:
        return asked
    done, skipped = (step // args.eval_interval for step in (args.iteration, args.start_eval_at_iter or 0))
    # One more evaluation follows the last iteration.
    evaluations = max(0, args.train_iters // args.eval_interval - max(done, skipped)) + 1
    batch = getattr(args, "eval_global_batch_size", None) or args.global_batch_size
    return max(asked, int(args.consumed_valid_samples) + evaluations * int(args.eval_iters) * int(batch))
