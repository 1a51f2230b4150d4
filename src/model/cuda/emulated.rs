//! A driver that is none: the kernels on the processor, by the emulation that `tests/cuda` has, over its own memory.
//!
//! What it proves of the engine: that every launch gives the kernel the arguments, the threads and the memory it asks
//! for. Products are plain loops.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use std::alloc::{Layout, alloc, dealloc};
use std::collections::HashMap;
use std::ffi::{CString, c_char};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock};

use half::{bf16, f16};
use libloading::Library;

use super::super::numerics::Numerics;
use super::card::{Kind, Onto, Result};
use super::launches::{Arg, Driver, Home, Launches, Product, Threads};

type Launch = unsafe extern "C" fn(*const c_char, *const u32, *const u32, u32, *const c_char, *const u64);

/// The kernels on the processor.
pub struct Emulated {
    sizes: Mutex<HashMap<u64, usize>>,
    recording: Mutex<Option<Vec<Step>>>,
}

/// Something that was recorded.
#[derive(Clone)]
pub enum Step {
    /// A kernel.
    Launch(String, Threads, Vec<Arg>),
    /// A product.
    Multiply(Product),
    /// A copy.
    Copy(u64, u64, usize),
    /// Zeros.
    Zero(u64, usize),
}

/// One launch at a time: the emulation has one set of threads.
static ONE: Mutex<()> = Mutex::new(());

fn library() -> Option<&'static Library> {
    static LIBRARY: OnceLock<Option<Library>> = OnceLock::new();
    LIBRARY.get_or_init(|| build().map(|path| unsafe { Library::new(path) }.unwrap())).as_ref()
}

/// A card whose kernels the processor runs; `None`, after having said so, where there is no C++ compiler.
pub fn card(numerics: Numerics) -> Option<Launches<Emulated>> {
    if library().is_none() {
        println!("skipped: the kernels' emulation needs a C++ compiler, c++ or what CXX names");
        return None;
    }
    let driver = Emulated { sizes: Mutex::default(), recording: Mutex::default() };
    Some(Launches::new(Arc::new(Home::new(driver, None)), numerics))
}

/// Compiles the library, unless that has been done for just these sources.
fn build() -> Option<PathBuf> {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    Command::new(&compiler).arg("--version").output().ok()?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = |folder: &str, endings: &[&str]| -> Vec<PathBuf> {
        let all = std::fs::read_dir(root.join(folder)).unwrap().map(|entry| entry.unwrap().path());
        let of = |path: &PathBuf| path.extension().is_some_and(|e| endings.contains(&e.to_str().unwrap()));
        let mut all: Vec<PathBuf> = all.filter(of).collect();
        // The text that all others need stands first.
        all.sort_by_key(|path| (path.extension().is_some_and(|e| e == "cu"), path.clone()));
        all
    };
    let kernels = files("src/model/cuda/kernels", &["cuh", "cu"]);
    let mut hasher = blake3::Hasher::new();
    for path in kernels.iter().chain(&files("tests/cuda", &["hpp", "cpp"])) {
        hasher.update(&std::fs::read(path).unwrap());
    }
    let made = std::env::temp_dir().join(format!("pipe-kernels-{}.so", &hasher.finalize().to_hex()[..32]));
    if made.exists() {
        return Some(made);
    }
    let folder = tempfile::tempdir().unwrap();
    let includes: String = kernels.iter().map(|path| format!("#include {path:?}\n")).collect();
    std::fs::write(folder.path().join("kernels.inc"), includes).unwrap();
    std::fs::write(folder.path().join("names.inc"), "").unwrap();
    let source = root.join("tests/cuda/library.cpp");
    let compile = |arguments: &[&str]| {
        let mut command = Command::new(&compiler);
        command.args([
            "-std=c++17",
            "-O1",
            "-fPIC",
            "-U_FORTIFY_SOURCE",
            "-ffp-contract=off",
            "-Wno-unknown-pragmas",
        ]);
        command
            .arg("-I")
            .arg(folder.path())
            .arg("-I")
            .arg(root.join("tests/cuda"))
            .args(arguments)
            .arg(&source);
        let result = command.output().unwrap();
        assert!(result.status.success(), "{compiler}: {}", String::from_utf8_lossy(&result.stderr));
        String::from_utf8(result.stdout).unwrap()
    };
    let names: String = compile(&["-E", "-P"])
        .split("extern \"C\" void ")
        .skip(1)
        .filter_map(|kernel| kernel.split_once('('))
        .filter(|(name, _)| *name != "emulated_launch")
        .map(|(name, _)| format!("LAUNCH({name})\n"))
        .collect();
    std::fs::write(folder.path().join("names.inc"), names).unwrap();
    let fresh = folder.path().join("kernels.so");
    compile(&["-shared", "-o", fresh.to_str().unwrap()]);
    // Another process may be at the same: whoever renames last wins with the same bytes.
    let beside = made.with_extension(format!("{}", std::process::id()));
    std::fs::copy(&fresh, &beside).unwrap();
    std::fs::rename(&beside, &made).unwrap();
    Some(made)
}

fn memory(bytes: usize) -> Layout {
    Layout::from_size_align(bytes.max(1), 256).unwrap()
}

impl Emulated {
    /// Does a step, or records it.
    fn run(&self, step: Step) -> Result<()> {
        match &mut *self.recording.lock().unwrap() {
            Some(steps) => steps.push(step),
            None => carry_out(&step),
        }
        Ok(())
    }
}

fn carry_out(step: &Step) {
    match step {
        Step::Launch(kernel, threads, arguments) => launch(kernel, threads, arguments),
        Step::Multiply(product) => multiply(product),
        // SAFETY: the engine holds as much memory at both places.
        Step::Copy(to, from, bytes) => unsafe { std::ptr::copy(*from as *const u8, *to as *mut u8, *bytes) },
        // SAFETY: as above.
        Step::Zero(at, bytes) => unsafe { std::ptr::write_bytes(*at as *mut u8, 0, *bytes) },
    }
}

fn launch(kernel: &str, threads: &Threads, arguments: &[Arg]) {
    let kinds: String = arguments
        .iter()
        .map(|argument| match argument {
            Arg::At(_) => 'p',
            Arg::Int(_) | Arg::Unsigned(_) => 'i',
            Arg::Long(_) => 'l',
            Arg::Float(_) => 'f',
            Arg::Double(_) => 'd',
        })
        .collect();
    let bits = |argument: &Arg| match *argument {
        Arg::At(place) => place,
        Arg::Int(number) => u64::from(number as u32),
        Arg::Unsigned(number) => u64::from(number),
        Arg::Long(number) => number as u64,
        Arg::Float(number) => u64::from(number.to_bits()),
        Arg::Double(number) => number.to_bits(),
    };
    let bits: Vec<u64> = arguments.iter().map(bits).collect();
    let (name, kinds) = (CString::new(kernel).unwrap(), CString::new(kinds).unwrap());
    let grid = [threads.grid.0 as u32, threads.grid.1 as u32];
    let block = [threads.block.0, threads.block.1];
    let _one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    // SAFETY: the function has this type, and checks number and kinds of the arguments.
    unsafe {
        let function = library().unwrap().get::<Launch>(b"emulated_launch\0").unwrap();
        function(name.as_ptr(), grid.as_ptr(), block.as_ptr(), threads.shared, kinds.as_ptr(), bits.as_ptr());
    }
}

fn multiply(product: &Product) {
    let Product { turned, sizes: (m, n, k), a, b, c, onto, kind, .. } = *product;
    let number = |(first, stride): (u64, usize), turned: bool, row: usize, column: usize| {
        let index = if turned { column + row * stride } else { row + column * stride };
        // SAFETY: the matrices have the sizes that the product names.
        unsafe {
            match kind {
                Kind::F32 => *(first as *const f32).add(index),
                Kind::BF16 => (*(first as *const bf16).add(index)).to_f32(),
                Kind::F16 => (*(first as *const f16).add(index)).to_f32(),
            }
        }
    };
    for column in 0..n {
        for row in 0..m {
            let sum: f64 = (0..k)
                .map(|i| f64::from(number(a, turned[0], row, i)) * f64::from(number(b, turned[1], i, column)))
                .sum();
            // SAFETY: as above.
            let to = unsafe { &mut *(c.0 as *mut f32).add(row + column * c.1) };
            *to = if onto == Onto::Itself { *to } else { 0.0 } + sum as f32;
        }
    }
}

impl Driver for Emulated {
    type Recorded = Vec<Step>;

    fn allocate(&self, bytes: usize) -> Result<Option<u64>> {
        // SAFETY: the layout is not empty; what is there before it is written must not matter.
        let pointer = unsafe {
            let pointer = alloc(memory(bytes));
            std::ptr::write_bytes(pointer, 0xff, bytes);
            pointer as u64
        };
        self.sizes.lock().unwrap().insert(pointer, bytes);
        Ok(Some(pointer))
    }

    fn free(&self, pointer: u64) {
        let bytes = self.sizes.lock().unwrap().remove(&pointer).unwrap();
        // SAFETY: it came from `allocate` with this layout.
        unsafe { dealloc(pointer as *mut u8, memory(bytes)) };
    }

    fn wait(&self) -> Result<()> {
        Ok(())
    }

    fn write(&self, to: u64, from: &[u32]) -> Result<()> {
        // SAFETY: the engine holds as many words there.
        unsafe { std::ptr::copy(from.as_ptr(), to as *mut u32, from.len()) };
        Ok(())
    }

    fn read(&self, to: &mut [u32], from: u64) -> Result<()> {
        // SAFETY: as above.
        unsafe { std::ptr::copy(from as *const u32, to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        self.run(Step::Copy(to, from, bytes))
    }

    fn zero(&self, at: u64, bytes: usize) -> Result<()> {
        self.run(Step::Zero(at, bytes))
    }

    fn launch(&self, kernel: &str, threads: Threads, arguments: &[Arg]) -> Result<()> {
        self.run(Step::Launch(kernel.to_owned(), threads, arguments.to_vec()))
    }

    fn multiply(&self, product: &Product) -> Result<()> {
        self.run(Step::Multiply(*product))
    }

    fn record(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Option<Vec<Step>>> {
        *self.recording.lock().unwrap() = Some(Vec::new());
        let outcome = work();
        let steps = self.recording.lock().unwrap().take();
        outcome.map(|()| steps)
    }

    fn replay(&self, recorded: &Vec<Step>) -> Result<()> {
        recorded.iter().for_each(carry_out);
        Ok(())
    }
}
