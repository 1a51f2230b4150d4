//! The kernels' text, and what NVRTC makes of it for a card.
//!
//! Compiled once for each kind of card and version of the text: the result is kept in the user's cache folder.

use std::ffi::{CStr, CString, c_char};
use std::path::PathBuf;

use cudarc::nvrtc::{result, sys};

use super::CardError;

/// The text that stands before all others.
const COMMON: &str = include_str!("kernels/common.cuh");
const ATTENTION: &str = include_str!("kernels/attention.cu");
/// All texts but attention's.
const OTHERS: [&str; 9] = [
    include_str!("kernels/activation.cu"),
    include_str!("kernels/cross_entropy.cu"),
    include_str!("kernels/elementwise.cu"),
    include_str!("kernels/embed.cu"),
    include_str!("kernels/norm.cu"),
    include_str!("kernels/optimizer.cu"),
    include_str!("kernels/reduce.cu"),
    include_str!("kernels/rotary.cu"),
    include_str!("kernels/sampling.cu"),
];

/// Kernels that are compiled together: those of attention take the compiler longest, and a model has one size of heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Attention over heads of at most so many numbers.
    Attention(u32),
    /// All others.
    Others,
}

impl Part {
    /// Where a kernel is found.
    pub fn of(kernel: &str) -> Self {
        let size = kernel.strip_prefix("attention_").and_then(|name| name.rsplit_once('_'));
        size.and_then(|(_, size)| size.parse().ok()).map_or(Self::Others, Self::Attention)
    }

    fn source(self) -> String {
        match self {
            Self::Attention(size) => format!("#define ATTENTION_D {size}\n{COMMON}{ATTENTION}"),
            Self::Others => format!("{COMMON}{}", OTHERS.concat()),
        }
    }
}

/// Some kernels in the machine code of cards of this compute capability.
///
/// # Errors
/// NVRTC does not know such cards, or refuses the text.
pub fn compiled(capability: (u32, u32), part: Part) -> Result<Vec<u8>, CardError> {
    let (major, minor) = capability;
    let option = format!("--gpu-architecture=sm_{major}{minor}");
    let source = part.source();
    let (mut nvrtc, mut nvrtc_minor) = (0, 0);
    // SAFETY: two valid places for two numbers.
    unsafe { sys::nvrtcVersion(&raw mut nvrtc, &raw mut nvrtc_minor) }.result().map_err(failed)?;
    let mut hasher = blake3::Hasher::new();
    hasher
        .update(option.as_bytes())
        .update(format!("{nvrtc}.{nvrtc_minor}").as_bytes())
        .update(source.as_bytes());
    let kept =
        folder().map(|folder| folder.join(format!("kernels-{}.cubin", &hasher.finalize().to_hex()[..32])));
    if let Some(code) =
        kept.as_ref().and_then(|path| std::fs::read(path).ok()).filter(|code| !code.is_empty())
    {
        return Ok(code);
    }
    let code = compile(&source, &option)?;
    // A cache that can't be written to costs time, nothing else.
    if let Some(path) = kept
        && let Some(folder) = path.parent()
        && std::fs::create_dir_all(folder).is_ok()
    {
        let _ = crate::files::write_atomically(&path, &code);
    }
    Ok(code)
}

fn folder() -> Option<PathBuf> {
    let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let base = base.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")));
    base.map(|base| base.join("pipe"))
}

fn failed(error: result::NvrtcError) -> CardError {
    CardError::Failed { what: "compiling the kernels".into(), reason: format!("{error:?}") }
}

fn compile(source: &str, architecture: &str) -> Result<Vec<u8>, CardError> {
    let source = CString::new(source).map_err(|error| CardError::Failed {
        what: "compiling the kernels".into(),
        reason: error.to_string(),
    })?;
    let program = result::create_program(&source, Some(c"kernels.cu")).map_err(failed)?;
    // Lambdas in kernels are for the card like all else.
    let options = [architecture, "--std=c++17", "-default-device"].map(str::to_owned);
    // SAFETY: the program was made above and is destroyed below, after its last use.
    let outcome = unsafe { result::compile_program(program, &options) }.map_err(|error| {
        // SAFETY: as above; the log is a text that ends with a zero.
        let log = unsafe { result::get_program_log(program) }.unwrap_or_default();
        let reason = if log.is_empty() {
            format!("{error:?}")
        } else {
            // SAFETY: NVRTC ends its log with a zero.
            unsafe { CStr::from_ptr(log.as_ptr()) }.to_string_lossy().into_owned()
        };
        CardError::Failed { what: "compiling the kernels".into(), reason }
    });
    let code = outcome.and_then(|()| {
        let mut size = 0;
        // SAFETY: a valid place for a number; then memory of the size that NVRTC asks for.
        unsafe { sys::nvrtcGetCUBINSize(program, &raw mut size) }.result().map_err(failed)?;
        let mut code = vec![0u8; size];
        // SAFETY: as above.
        unsafe { sys::nvrtcGetCUBIN(program, code.as_mut_ptr().cast::<c_char>()) }
            .result()
            .map_err(failed)?;
        Ok(code)
    });
    // SAFETY: nothing uses it any more.
    let _ = unsafe { result::destroy_program(program) };
    code
}

#[cfg(test)]
mod tests {
    use super::super::libraries;
    use super::*;

    #[test]
    fn a_kernel_is_found_by_its_name() {
        assert_eq!(Part::of("attention_backward_keys_256"), Part::Attention(256));
        assert_eq!([Part::of("gelu_forward_f32"), Part::of("add")], [Part::Others; 2]);
    }

    #[test]
    fn the_text_compiles_for_the_oldest_cards_and_newer_ones() {
        if let Err(error) = libraries::find("libnvrtc") {
            println!("skipped: {error}");
            return;
        }
        let parts = [64, 128, 256].map(Part::Attention).into_iter().chain([Part::Others]);
        for (part, architecture) in parts.flat_map(|part| [(part, "sm_80"), (part, "sm_90")]) {
            let code = compile(&part.source(), &format!("--gpu-architecture={architecture}"));
            let code = code.unwrap_or_else(|error| panic!("{error}"));
            for name in ["embed_bf16", "attention_backward_keys_128", "adamw_f16", "argmax_finish"] {
                let found = code.windows(name.len()).any(|part| part == name.as_bytes());
                assert_eq!(found, Part::of(name) == part, "`{name}` in {part:?} for {architecture}");
            }
        }
    }
}
