"""How the stages up to supervised fine-tuning are run: what they read, and what they leave."""

from llama2_lib.pipeline.samples import write_answers, write_samples
from llama2_lib.pipeline.stage import Job
from llama2_lib.stages import corpus as corpus_stage
from llama2_lib.stages import tokenizer as tokenizer_stage
from llama2_lib.stages.pretrain import pretrain
from llama2_lib.stages.sft import examples, sft, training_dialogs, validation_dialogs


def run_tokenizer(job: Job) -> None:
    """Train the tokenizer on the first documents of the corpus."""
    tokenizer_stage.run(job.recipe.tokenizer, job.recipe.corpus, job.folder)


def run_corpus(job: Job) -> None:
    """Encode the corpus."""
    corpus_stage.build_corpus(job.recipe.corpus, job.tokenizer, job.folder)


def run_pretrain(job: Job) -> None:
    """Pretrain the base model."""
    model = pretrain(
        job.recipe.pretrain,
        job.recipe.model,
        corpus_stage.load_corpus(job.inputs["corpus"], "train"),
        corpus_stage.load_corpus(job.inputs["corpus"], "validation"),
        job.folder,
        job.device,
        job.report,
    )
    job.write_beside(write_samples(model, job.tokenizer, job.recipe))


def run_sft(job: Job) -> None:
    """Fine-tune it on demonstrations."""
    tokenizer = job.tokenizer
    config, world_seed = job.recipe.sft, job.recipe.corpus.world_seed
    train = training_dialogs(config, world_seed)
    validation = validation_dialogs(config, world_seed, train)
    model = sft(
        config,
        job.model("pretrain"),
        examples(train, tokenizer),
        examples(validation, tokenizer),
        job.folder,
        job.device,
        job.report,
    )
    job.write_beside(write_answers(model, tokenizer, validation, job.recipe))
