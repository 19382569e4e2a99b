"""Learn an anonymization prompt for a frozen text-to-image model (arXiv 2405.16895), and measure its effect.

    python train.py --preset mini
    python train.py --prompt apl --train_method apl --iterations 20000 --lr 1e-3 --devices 0 \
        --config_path configs/stable-diffusion/v1-inference.yaml --ckpt_path models/sd-v1-5.ckpt
    python train.py --preset mini --train_method apl-map                                   # a map of the context in place of the prefix
    python train.py --preset mini --train_method apl-text                                  # a prefix from texts alone, in a minute
    python train.py --preset mini --train_method esd                                       # a competing method
    python train.py --preset mini --train_method dreambooth --photos data/mini/photos/n000001    # an attack

Writes the prefix to embeddings/<prompt>-<step>.pt (a map to .safetensors, edited weights to --out_dir), and log, images and the final
table to --out_dir.
The same command again resumes an interrupted run.
"""

import argparse

from args.common import options_of
from args.train_args import parse_train_args, table_flags, train_inputs
from args.train_methods import APL, MAP, TEXT
from ldm.util import exit_with_sentence


@exit_with_sentence
def main(argv: list[str] | None = None) -> None:
    args = parse_train_args(argv)
    if args.dry_run:
        from ldm.apl.dry_run import show_plan
        from ldm.apl.training_run import TrainingOptions
        from ldm.loading import ModelFiles

        show_plan(options_of(TrainingOptions, args, files=options_of(ModelFiles, args)), train_inputs(args))
    elif args.train_method in APL:
        train(args)
    else:
        train_another(args)


def train(args: argparse.Namespace) -> None:
    """The paper's procedure, from the data to the final table."""
    # Imported here so that --help and mistyped flags are answered at once.
    from ldm.apl.acceleration import accelerate
    from ldm.apl.launch import launch, set_precision
    from ldm.apl.prefix import build_context_map, build_prefix
    from ldm.apl.trainer import train_prefix
    from ldm.apl.training_run import TrainingOptions, arguments_of, batches_of_texts, describe, look_ahead, prepare_run
    from ldm.device import pick_precision
    from ldm.experiments.identity_table import IdentityOptions
    from ldm.experiments.robust_attack import attack_of
    from ldm.experiments.training_report import TrainingReport
    from ldm.experiments.variants import Variant
    from ldm.loading import ModelFiles
    from ldm.logbook import Logbook
    from ldm.modules.embedding_manager import Manager
    from ldm.run_folder import versions, write_json

    options = options_of(TrainingOptions, args, files=options_of(ModelFiles, args))
    fabric = launch(args.devices, args.batch_size, num_nodes=args.num_nodes)
    run = prepare_run(options)
    if fabric.is_global_zero:
        print(describe(options, run), flush=True)
    precision = pick_precision(args.precision, fabric.device)
    arguments = arguments_of(options, run, precision, args.out_dir / "hashes.json")
    logbook = Logbook(args.out_dir, arguments, resume=args.resume, log_to=args.log_to.split(","))
    report = TrainingReport(options_of(IdentityOptions, args, **table_flags(args)), run.people, fabric, n_names=args.eval_names)
    if fabric.is_global_zero:
        for path in (args.embeddings_dir / f"{args.prompt}.json", args.out_dir / "arguments.json"):
            write_json(path, {"arguments": vars(args), "learned_from": arguments, "versions": versions()})
        run.left_out.announce(args.out_dir)

    model = options.files.load(fabric.device)
    set_precision(model, precision)
    if args.train_method == MAP:
        prefix: Manager = build_context_map(model, rank=args.map_rank, seed=args.seed)
    else:
        prefix = build_prefix(model, placeholder=args.placeholder, num_vectors=args.num_vectors, init=args.init,
                              initializer_words=args.initializer_words, seed=args.seed)
    recorded = accelerate(model, checkpointing=args.checkpointing, compile=args.compile, cuda_graphs=args.cuda_graphs,
                          batch_size=args.batch_size // fabric.world_size, world_size=fabric.world_size)
    if args.train_method == TEXT:
        batches = batches_of_texts(options, run, fabric, model, prefix, logbook)
    else:
        batches = look_ahead(options, run, arguments, fabric, model, prefix, logbook)
    before_after = report.before_after(model)
    train_prefix(fabric, model, prefix, batches, settings=options, logbook=logbook,
                 save=lambda step: prefix.save(options.prefix_path(step), step=step, **arguments),
                 grid=lambda: before_after.grid(Variant(manager=prefix)), recorded=recorded,
                 attack=attack_of(options, run, fabric, model, prefix))

    final = options.prefix_path(args.iterations)
    if fabric.is_global_zero:
        logbook.write_cost(final)
    said = report.write(model, options.files, final, precision=precision, arguments=vars(args), before_after=before_after)
    if fabric.is_global_zero:
        print(f"{said}\n\n{'map' if args.train_method == MAP else 'prefix'} {final}, tables and images {args.out_dir}")


def train_another(args: argparse.Namespace) -> None:
    """A competing method of Table 2, or an attack of section 4.4."""
    from ldm.apl.launch import launch, set_precision
    from ldm.device import pick_precision
    from ldm.experiments.identity_table import IdentityOptions
    from ldm.experiments.method_builders import MethodOptions, weights_to_train
    from ldm.experiments.methods import MethodPlan, attack_report, people_of
    from ldm.experiments.training_report import TrainingReport
    from ldm.loading import ModelFiles
    from ldm.logbook import Logbook

    options = options_of(MethodOptions, args, files=options_of(ModelFiles, args))
    fabric = launch(args.devices, args.batch_size, num_nodes=args.num_nodes)
    plan = MethodPlan(options, vars(args))
    if fabric.is_global_zero:
        print(plan.describe(), flush=True)
    precision = pick_precision(args.precision, fabric.device)
    logbook = Logbook(args.out_dir, plan.arguments(precision), resume=args.resume, log_to=(args.log_to or "").split(","))
    report = None  # its inputs are read before the training
    if plan.material.names:
        report = TrainingReport(options_of(IdentityOptions, args, **table_flags(args)), people_of(plan), fabric, n_names=args.eval_names)
    model = options.files.load(fabric.device)
    weights = weights_to_train(options, model)  # in float32, as they are in the checkpoint
    set_precision(model, precision)
    result = plan.run(fabric, weights, logbook)
    if report:
        said = report.write(model, options.files, result, precision=precision, arguments=plan.flags)
    else:
        said = attack_report(plan, fabric, model, result)
    if fabric.is_global_zero:
        print(f"{said}\n\nresult {result}, tables and images {args.out_dir}")


if __name__ == "__main__":
    main()
