//! What can be found in the files of an adapter. The table is the documentation: `docs/lint.md` and `--explain` are made
//! of it, and a test has to show each of them (`tests/it/lint.rs`).

use crate::adapter::finding::{Code, Level};

const fn code(
    id: &'static str,
    level: Level,
    title: &'static str,
    why: &'static str,
    repair: Option<&'static str>,
) -> Code {
    Code { id, level, title, why, repair }
}

use Level::{Error, Info, Warning};

// Files

pub static UNREADABLE: Code = code(
    "L001",
    Error,
    "files that cannot be opened",
    "The file is missing, cut short, or breaks the rules of its own format. Nothing else can be said about the adapter. \
     An interrupted download and a Git LFS pointer in place of the file are the usual reasons.",
    None,
);
pub static REFUSED: Code = code(
    "L002",
    Error,
    "refused by the reader of its layout",
    "The tensors and the config do not make an adapter of this layout. Every command of this program would stop with \
     the same sentence.",
    None,
);
pub static LEFT_OUT: Code = code(
    "L003",
    Warning,
    "left out or guessed when read",
    "The reader of the layout understood the adapter, and had to leave something out or take a guess. With --strict, \
     merge and convert refuse it.",
    None,
);
pub static REMARK: Code = code(
    "L004",
    Info,
    "remark of the reader",
    "Something the reader of the layout thinks worth knowing; nothing is lost.",
    None,
);
pub static NOT_MERGEABLE: Code = code(
    "L005",
    Warning,
    "cannot become part of a model's weights",
    "The adapter may be whole and work where it was made, but what it does is not a change of weights, or not one that \
     can be calculated from its files: prompts and prefixes, routers, adapters that act after certain tokens, layers \
     that the base does not have. It cannot be merged or converted.",
    None,
);
pub static PICKLED: Code = code(
    "L006",
    Warning,
    "tensors in a pickle",
    "Pickled files can run code when other programs load them, and many loaders and hubs refuse them for that. This \
     program reads them by a closed list and runs nothing.",
    Some("the tensors are written as safetensors, with the same bytes"),
);
pub static OTHER_VALUES: Code = code(
    "L007",
    Info,
    "values that are no tensors",
    "The pickle holds values beside the tensors, such as the state of a training. No reader of adapters looks at them, \
     and a safetensors file has no place for them.",
    Some("they stay behind when the tensors are written as safetensors"),
);
pub static TWO_FILES: Code = code(
    "L008",
    Warning,
    "a second file of tensors",
    "The folder holds tensors twice. Programs take safetensors before .bin before .pt, so that the other file is \
     ignored, or, where a program prefers it, used in place of the first. If one is older than the other, which adapter \
     is loaded depends on the program.",
    None,
);
pub static NO_TENSORS: Code = code(
    "L009",
    Error,
    "a file without tensors",
    "The file is well formed and empty. It is what is left when a trainer saves an adapter from a process that does not \
     hold it, as under ZeRO-3 or FSDP.",
    None,
);
pub static UNKNOWN_LAYOUT: Code = code(
    "L010",
    Error,
    "no layout known here",
    "Neither the config nor the keys are those of a layout that this program reads; `lora-tool layouts` lists them. A \
     single file of another ecosystem may need its config beside it.",
    None,
);
pub static NO_CONFIG: Code = code(
    "L011",
    Error,
    "tensors without their config",
    "The keys are PEFT's, and adapter_config.json is not beside them. Alpha, rank patterns and the kind of the adapter \
     stand only there: without them the strength of the adapter is a guess.",
    None,
);

// Keys

pub static WRAPPER: Code = code(
    "L101",
    Warning,
    "a training framework's wrapper in the key",
    "torch.compile, FSDP, gradient checkpointing and DataParallel wrap modules, and a state saved without unwrapping them \
     has _orig_mod, _fsdp_wrapped_module, _checkpoint_wrapped_module or module in its keys. This program looks through \
     them; PEFT matches nothing and runs the base with no more than a warning.",
    Some("the component is taken out of the key"),
);
pub static ADAPTER_NAME: Code = code(
    "L102",
    Warning,
    "the adapter's name in the key",
    "In memory PEFT puts the name of the adapter behind lora_A and lora_B, and takes it out when it saves. A state saved \
     by hand keeps it (lora_A.style.weight). PEFT finds such a tensor only where the adapter is loaded under that very \
     name, and otherwise runs the base with no more than a warning.",
    Some("the name is taken out of the key"),
);
pub static DOUBLED_PREFIX: Code = code(
    "L103",
    Warning,
    "the prefix of PEFT more than once",
    "An adapter of an already wrapped model has base_model.model. twice. Programs that take it off once look for a \
     module that no base has; PEFT runs the base with no more than a warning.",
    Some("one prefix is left"),
);
pub static NO_PREFIX: Code = code(
    "L104",
    Warning,
    "without the prefix of PEFT",
    "PEFT's keys begin with base_model.model. Without it PEFT itself finds nothing and leaves the base as it is, with no \
     more than a warning.",
    Some("the prefix is put before the key"),
);
pub static SAVED_WRAPPER: Code = code(
    "L105",
    Warning,
    "modules_to_save in the key",
    "In memory a module that is trained whole lies in modules_to_save.<adapter>; PEFT takes that out when it saves. A \
     state saved by hand keeps it, and PEFT 0.21 stops with a KeyError when it loads it.",
    Some("modules_to_save and the adapter's name are taken out of the key"),
);
pub static ORIGINAL_MODULE: Code = code(
    "L106",
    Info,
    "the untrained copy of a module",
    "Beside a module that is trained whole, PEFT keeps the base's own as original_module. It belongs to the base and is \
     never read from an adapter.",
    Some("the copy is left out"),
);
pub static SAME_TWICE: Code = code(
    "L107",
    Info,
    "the same tensor under two keys",
    "Two keys mean the same module and hold the same values.",
    Some("one of the two is left out"),
);
pub static TWO_MEANINGS: Code = code(
    "L108",
    Error,
    "two tensors for one place",
    "Two keys mean the same module and hold different values, so that it depends on the program and on the order of the \
     file which of them counts. Two adapters may have been saved into one file.",
    None,
);
pub static HALF: Code = code(
    "L109",
    Error,
    "half of a pair",
    "A change of low rank is the product of two factors, and one of them is not in the file. The file was cut, filtered, \
     or saved by one of several processes. PEFT multiplies what is there with the random start of the other.",
    None,
);
pub static FOREIGN_KEY: Code = code(
    "L110",
    Error,
    "a key of another layout or kind",
    "The key has a word that other layouts or tuners give to factors, and the adapter does not say that it is one of \
     them. Taken literally it would be a whole tensor of the model, which it is not.",
    None,
);
pub static MOE_SEGMENT: Code = code(
    "L111",
    Warning,
    "experts below a module called moe",
    "Some serving engines name experts with a .moe. that the model of transformers does not have. Adapters saved with \
     these names lose their experts in silence elsewhere.",
    None,
);
pub static EXPERTS_3D: Code = code(
    "L112",
    Warning,
    "factors of experts with three dimensions",
    "PEFT stores the factors of all experts as one matrix. Factors of shape [experts, rank, in] come from other trainers \
     (Tinker, for one), and PEFT cannot load them; their experts have to be written one by one.",
    None,
);

// Values

pub static EMPTY: Code = code(
    "L201",
    Error,
    "a tensor without elements",
    "The shape has a zero. Under ZeRO-3 and FSDP each process holds a part of every weight, and saving without gathering \
     them leaves empty tensors. The values are not in this file and cannot be recovered from it.",
    None,
);
pub static FLAT: Code = code(
    "L202",
    Error,
    "a factor with one dimension",
    "Factors are matrices. A flat one is a piece of a sharded weight that was saved without gathering it, or a matrix \
     whose shape was lost.",
    None,
);
pub static NONFINITE: Code = code(
    "L203",
    Error,
    "NaN or infinity",
    "A single one makes every output of the model NaN once the adapter is applied. It comes from a training that \
     diverged, or from a cast to a type that is too small. There is no value to put in its place: go back to an earlier \
     checkpoint.",
    None,
);
pub static ZERO_B: Code = code(
    "L204",
    Warning,
    "B is all zeros",
    "B starts at zero, so this change is still nothing: the module was never trained, its gradients were lost, or the \
     adapter was saved before the first step. If it is so everywhere, the adapter does nothing at all.",
    None,
);
pub static ZERO_A: Code = code(
    "L205",
    Warning,
    "A is all zeros",
    "A starts with random values. A zero one means that the change is nothing, whatever B is, and no training leaves \
     it so.",
    None,
);
pub static RANKS_DIFFER: Code = code(
    "L206",
    Error,
    "factors of different rank",
    "A has as many rows as B has columns; these do not. The two halves may come from different adapters.",
    None,
);
pub static TRANSPOSED: Code = code(
    "L207",
    Error,
    "factors the wrong way round",
    "The shapes fit only if A is [in, rank] and B is [rank, out], as MLX stores them; PEFT has A as [rank, in] and B as \
     [out, rank].",
    None,
);
pub static MIXED_DTYPES: Code = code(
    "L208",
    Info,
    "factors of several types",
    "Some tensors are stored in another type than the rest. Nothing is wrong with it, but some programs cast all of them \
     to the type of the first.",
    None,
);
pub static ODD_DTYPE: Code = code(
    "L209",
    Warning,
    "a factor that is no plain floating-point number",
    "The factor is stored in integers or in 8 bits, which PEFT never writes. If it was quantised, its scales are not \
     where a reader would look for them.",
    None,
);

// Config

pub static ALPHA_MISSING: Code = code(
    "L301",
    Warning,
    "lora_alpha is missing",
    "PEFT takes 8 where the config says nothing, other programs take the rank, and vLLM refuses: the strength of the \
     adapter depends on who reads it.",
    Some("the 8 that PEFT takes is written"),
);
pub static RANK_MISSING: Code = code(
    "L302",
    Warning,
    "r is missing",
    "PEFT takes 8 where the config says nothing, and fails where the tensors have another rank; vLLM refuses.",
    Some("the rank of the tensors is written"),
);
pub static RANK_WRONG: Code = code(
    "L303",
    Error,
    "the rank of the config is not that of the tensors",
    "PEFT makes modules of the rank that the config gives, and cannot load tensors of another. The config may belong to \
     another adapter; then its alpha does, too. If only r is wrong, the scale is alpha over the rank of the tensors.",
    Some("r becomes the rank of the tensors where they agree; alpha stays"),
);
pub static IDLE_PATTERN: Code = code(
    "L304",
    Warning,
    "a pattern that matches nothing",
    "An entry of rank_pattern or alpha_pattern matches no module of the adapter, and PEFT ignores it in silence. It is \
     often a misspelt name: then the module it was meant for has another rank or alpha than it should have.",
    Some("the entry is taken out"),
);
pub static IDLE_TARGET: Code = code(
    "L305",
    Warning,
    "a target module that matches nothing",
    "An entry of target_modules names no module with tensors in the file. Where the base has such a module, PEFT makes a \
     new adapter there, which changes nothing, and warns of missing keys; where it has none, the entry may be a \
     misspelt name, and PEFT says nothing.",
    Some("the entry is taken out"),
);
pub static UNSELECTED: Code = code(
    "L306",
    Warning,
    "a module that the config does not select",
    "The file has factors for a module that target_modules, exclude_modules or layers_to_transform leave out. PEFT makes \
     no adapter there and drops the factors in silence; this program and vLLM apply them.",
    Some("where target_modules is a list, the path of the module is added"),
);
pub static IDLE_PARAMETER: Code = code(
    "L307",
    Warning,
    "a target parameter that matches nothing",
    "An entry of target_parameters names a parameter of a module without tensors in the file.",
    None,
);
pub static IDLE_LAYER: Code = code(
    "L308",
    Warning,
    "a layer that has no tensors",
    "layers_to_transform lists a layer for which the file has nothing.",
    Some("the layer is taken out of the list"),
);
pub static IDLE_SAVED: Code = code(
    "L309",
    Warning,
    "a module to save that is not in the file",
    "An entry of modules_to_save names a module without tensors in the file. PEFT 0.21 stops with a KeyError when it loads \
     the adapter; earlier versions take the base's own. If the module was trained, the training is lost.",
    Some("the entry is taken out"),
);
pub static UNLISTED_SAVED: Code = code(
    "L310",
    Warning,
    "a whole tensor that modules_to_save does not list",
    "The file has a whole weight of the model, and the config does not say that it was trained. Some programs load it, \
     some ignore it, and vLLM refuses the file. PEFT loads it into the base itself, where it stays when the adapter is \
     switched off.",
    Some("the path of the module is added to modules_to_save"),
);
pub static LORA_BIAS: Code = code(
    "L311",
    Warning,
    "a bias of B although lora_bias is not set",
    "mergekit's extraction writes differences of biases as lora_B.bias and does not set lora_bias. PEFT drops them, vLLM \
     rejects the file, and this program takes them as the difference of the bias.",
    Some("lora_bias is set, where the scale is 1 and the meaning stays the same"),
);
pub static MAGNITUDES: Code = code(
    "L312",
    Error,
    "use_dora and the magnitudes disagree",
    "DoRA has a magnitude for every module. With use_dora and no magnitude PEFT takes the norms of the base in \
     place of the trained ones; with a magnitude and no use_dora it drops it in silence. Both compute something else than \
     was trained.",
    None,
);
pub static BASE_CHANGED: Code = code(
    "L313",
    Warning,
    "made for a changed base",
    "PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA take the first factors out of the base before the training. The adapter is \
     right only on what was left: on the base as it was published it is worse than none, unless the program takes the \
     start out again. This one does for PiSSA and OLoRA; vLLM refuses, others go wrong in silence.",
    None,
);
pub static SCALE_IGNORED: Code = code(
    "L314",
    Info,
    "a scale that not every program reads",
    "With use_rslora the scale is alpha over the root of the rank, and patterns give modules a rank or alpha of their \
     own. SGLang, LMDeploy and llama.cpp's converter ignore both and take alpha over r everywhere. `lora-tool convert \
     --normalise` writes an adapter that leaves nothing to read.",
    None,
);
pub static QUANTISED_NAME: Code = code(
    "L315",
    Info,
    "the base named is a quantised one",
    "The adapter was trained on a quantised copy. Weights cannot be merged into it; the 16-bit model it was made from \
     has another name.",
    None,
);
pub static NO_BASE_NAME: Code = code(
    "L316",
    Info,
    "no base is named",
    "base_model_name_or_path is empty: nobody can tell which model the adapter belongs to, and programs that load the \
     base by that name cannot.",
    None,
);
pub static LOCAL_BASE: Code = code(
    "L317",
    Info,
    "the base is named by a path",
    "base_model_name_or_path is a folder of the machine of the training. It means nothing elsewhere, and tells others \
     how that machine is laid out.",
    None,
);
pub static UNKNOWN_FIELD: Code = code(
    "L318",
    Warning,
    "a field of the config that is not known",
    "PEFT drops fields that it does not know, so that a newer adapter loads in an older program with another meaning. \
     This program ignores them, too, and says so.",
    None,
);
pub static UNKNOWN_SWITCH: Code = code(
    "L319",
    Error,
    "a switch of the config that is not known",
    "A field called use_… is on and not known here. In PEFT such fields change what the tensors mean.",
    None,
);
pub static BAD_PATTERN: Code = code(
    "L320",
    Error,
    "a pattern that cannot be evaluated",
    "The entry is no regular expression, one that is too large, or one that looks around. Paths of modules written out \
     in full work in every version of every program.",
    None,
);
pub static ODD_SCALE: Code = code(
    "L321",
    Warning,
    "an unusual scale",
    "Alpha and the rank give a factor below 0.001 or above 64. Zero turns the adapter off; the others are seldom meant, \
     and come from a config that belongs to another adapter or an alpha that was multiplied twice.",
    None,
);
pub static EXPERT_PACKING: Code = code(
    "L322",
    Warning,
    "the columns of experts may be in another order",
    "In a stack of experts PEFT has the columns of B by rank and then by expert. Unsloth before September 2026 had them by \
     expert first, with the same shapes: read the other way, every expert gets columns of others. The field \
     lora_B_layout says which it is.",
    None,
);
pub static EXPERT_FACING: Code = code(
    "L323",
    Warning,
    "which way the factors of experts face is not said",
    "PEFT changed twice which side of a stack of experts A faces. Where the parameter is square only peft_version tells, \
     and the config does not have it.",
    None,
);
pub static TOKEN_IDS: Code = code(
    "L324",
    Error,
    "rows of tokens and their ids do not fit",
    "The file has rows that replace those of certain tokens; their ids stand in the config. There are not as many ids as \
     rows, or one stands twice.",
    None,
);
pub static BIASES: Code = code(
    "L325",
    Info,
    "the field bias and the tensors disagree",
    "bias says whether biases of the base were trained, and the file says something else. PEFT loads what is in the file; \
     vLLM refuses every value of the field but none.",
    None,
);
pub static HEAD_TASK: Code = code(
    "L326",
    Warning,
    "a head for classification in a language model's adapter",
    "The file has a head called score or classifier, and task_type says CAUSAL_LM. A language model has no such module; \
     the config may have been copied from another adapter.",
    None,
);
pub static EMBEDDINGS: Code = code(
    "L327",
    Info,
    "embeddings are changed",
    "The adapter changes the input or the output embedding. Whether the base ties the two decides what a merge has to \
     write, and its vocabulary has to be the adapter's. With --base it is checked.",
    None,
);
pub static TRAINING_MODE: Code = code(
    "L328",
    Info,
    "saved in the mode of training",
    "inference_mode is false, as in checkpoints of a training and in configs written by hand. PEFT loads it for inference \
     unless it is told otherwise; programs that look at the field make its weights trainable.",
    Some("inference_mode is set to true, as PEFT saves it"),
);
pub static PEFT_TYPE: Code = code(
    "L329",
    Warning,
    "peft_type in another spelling",
    "PEFT knows its tuners by names in capitals and stops with a KeyError at any other.",
    Some("the name is written in capitals"),
);
pub static QUOTED: Code = code(
    "L330",
    Error,
    "a number or a switch in quotation marks",
    "The field holds text where a number, true or false is expected. PEFT stops with a TypeError, or takes any text for \
     true, \"false\" as well.",
    Some("the value is written without the quotation marks"),
);
pub static BIAS_WORD: Code = code(
    "L331",
    Warning,
    "a value of bias that PEFT does not have",
    "bias is none, all or lora_only; at anything else PEFT stops when it loads the adapter.",
    None,
);
pub static SCALES_DIFFER: Code = code(
    "L332",
    Info,
    "another rank changes the scale",
    "Alpha is divided by the rank. Where rank_pattern gives some modules another rank and alpha_pattern gives them no alpha, \
     they are stronger or weaker than the rest. It may be meant; it is also what comes of changing ranks and forgetting alpha.",
    None,
);
pub static NO_TARGETS: Code = code(
    "L333",
    Warning,
    "no target modules",
    "target_modules is missing or empty. PEFT then takes two layers of its own choice for models it knows and drops the \
     factors of all others in silence, or stops; vLLM refuses a config without the field.",
    Some("the paths of the modules in the file are written"),
);

/// All of them, in order.
pub static CODES: &[&Code] = &[
    &UNREADABLE,
    &REFUSED,
    &LEFT_OUT,
    &REMARK,
    &NOT_MERGEABLE,
    &PICKLED,
    &OTHER_VALUES,
    &TWO_FILES,
    &NO_TENSORS,
    &UNKNOWN_LAYOUT,
    &NO_CONFIG,
    &WRAPPER,
    &ADAPTER_NAME,
    &DOUBLED_PREFIX,
    &NO_PREFIX,
    &SAVED_WRAPPER,
    &ORIGINAL_MODULE,
    &SAME_TWICE,
    &TWO_MEANINGS,
    &HALF,
    &FOREIGN_KEY,
    &MOE_SEGMENT,
    &EXPERTS_3D,
    &EMPTY,
    &FLAT,
    &NONFINITE,
    &ZERO_B,
    &ZERO_A,
    &RANKS_DIFFER,
    &TRANSPOSED,
    &MIXED_DTYPES,
    &ODD_DTYPE,
    &ALPHA_MISSING,
    &RANK_MISSING,
    &RANK_WRONG,
    &IDLE_PATTERN,
    &IDLE_TARGET,
    &UNSELECTED,
    &IDLE_PARAMETER,
    &IDLE_LAYER,
    &IDLE_SAVED,
    &UNLISTED_SAVED,
    &LORA_BIAS,
    &MAGNITUDES,
    &BASE_CHANGED,
    &SCALE_IGNORED,
    &QUANTISED_NAME,
    &NO_BASE_NAME,
    &LOCAL_BASE,
    &UNKNOWN_FIELD,
    &UNKNOWN_SWITCH,
    &BAD_PATTERN,
    &ODD_SCALE,
    &EXPERT_PACKING,
    &EXPERT_FACING,
    &TOKEN_IDS,
    &BIASES,
    &HEAD_TASK,
    &EMBEDDINGS,
    &TRAINING_MODE,
    &PEFT_TYPE,
    &QUOTED,
    &BIAS_WORD,
    &SCALES_DIFFER,
    &NO_TARGETS,
];
