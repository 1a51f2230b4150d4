//! Runs the CUDA kernels on the processor, by an emulation that a C++ compiler makes of them.
//!
//! Every launch is run twice, its threads and blocks in rising and in falling order: both have to give the same bits,
//! or a wait is missing somewhere. What is written outside an array ends the test.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;

use bytemuck::Pod;

/// Where the kernels are.
pub const KERNELS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/model/cuda/kernels");
const HARNESS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cuda");

/// What a kernel is given.
pub enum Argument<'a> {
    /// No array.
    Nothing,
    /// A number, by the harness's letter for it.
    Number(char, Vec<u8>),
    /// An array that must stay as it is, and the size of an element.
    In(&'a [u8], usize),
    /// An array that may change, and the size of an element.
    Out(&'a mut [u8], usize),
}

/// An array that is read.
pub fn read<T: Pod>(array: &[T]) -> Argument<'_> {
    Argument::In(bytemuck::cast_slice(array), size_of::<T>())
}

/// An array that is written.
pub fn write<T: Pod>(array: &mut [T]) -> Argument<'_> {
    Argument::Out(bytemuck::cast_slice_mut(array), size_of::<T>())
}

/// An array that is read, if there is one.
pub fn maybe<'a, T: Pod>(array: Option<&'a [T]>) -> Argument<'a> {
    array.map_or(Argument::Nothing, read)
}

macro_rules! numbers {
    ($($type:ty => $letter:literal)*) => {$(
        impl From<$type> for Argument<'_> {
            fn from(number: $type) -> Self {
                Self::Number($letter, number.to_le_bytes().to_vec())
            }
        }
    )*};
}
numbers!(i32 => 'i' u32 => 'i' i64 => 'l' f32 => 'f' f64 => 'd');

/// A process that runs kernels.
pub struct Emulated {
    process: Child,
    input: ChildStdin,
    output: ChildStdout,
}

impl Emulated {
    /// `None`, after having said so, where there is no C++ compiler.
    pub fn start() -> Option<Self> {
        static PROGRAM: OnceLock<Option<PathBuf>> = OnceLock::new();
        let Some(program) = PROGRAM.get_or_init(build) else {
            println!("skipped: the kernels' emulation needs a C++ compiler, c++ or what CXX names");
            return None;
        };
        let mut process = Command::new(program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, output) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        Some(Self { process, input, output })
    }

    /// Launches a kernel with a grid, a block (`x`, `y`) and dynamic shared memory of so many bytes.
    pub fn launch(
        &mut self,
        kernel: &str,
        grid: [usize; 2],
        block: [usize; 2],
        shared: usize,
        mut arguments: Vec<Argument>,
    ) {
        let rising = self.run(kernel, grid, block, shared, false, &arguments);
        let falling = self.run(kernel, grid, block, shared, true, &arguments);
        assert!(rising == falling, "{kernel}: the result depends on which thread is first");
        let mut results = rising.into_iter();
        for argument in &mut arguments {
            match argument {
                Argument::In(array, _) => {
                    assert!(results.next().unwrap() == *array, "{kernel}: changed what it should read");
                }
                Argument::Out(array, _) => array.copy_from_slice(&results.next().unwrap()),
                Argument::Nothing | Argument::Number(..) => {}
            }
        }
    }

    fn run(
        &mut self,
        kernel: &str,
        grid: [usize; 2],
        block: [usize; 2],
        shared: usize,
        falling: bool,
        arguments: &[Argument],
    ) -> Vec<Vec<u8>> {
        let mut message = Vec::new();
        let number = |message: &mut Vec<u8>, n: usize| message.extend((n as u32).to_le_bytes());
        number(&mut message, kernel.len());
        message.extend(kernel.bytes());
        for size in
            [grid[0], grid[1], 1, block[0], block[1], 1, shared, usize::from(falling), arguments.len()]
        {
            number(&mut message, size);
        }
        let mut lengths = Vec::new();
        for argument in arguments {
            let (array, element): (&[u8], usize) = match argument {
                Argument::Nothing => {
                    message.push(b'0');
                    continue;
                }
                Argument::Number(letter, bytes) => {
                    message.push(*letter as u8);
                    message.extend(bytes);
                    continue;
                }
                Argument::In(array, element) => (array, *element),
                Argument::Out(array, element) => (array, *element),
            };
            message.push(b'p');
            number(&mut message, array.len());
            number(&mut message, element);
            message.extend(array);
            lengths.push(array.len());
        }
        self.input.write_all(&message).and_then(|()| self.input.flush()).unwrap();
        let mut results: Vec<Vec<u8>> = lengths.into_iter().map(|length| vec![0; length]).collect();
        for result in &mut results {
            self.output.read_exact(result).unwrap_or_else(|_| panic!("{kernel}: see what the harness said"));
        }
        results
    }
}

impl Drop for Emulated {
    fn drop(&mut self) {
        // It waits for the next launch.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Compiles kernels and harness, unless that has been done for just these sources.
fn build() -> Option<PathBuf> {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    Command::new(&compiler).arg("--version").output().ok()?;
    let kernels = sources(KERNELS, &["cuh", "cu"]);
    let mut hasher = blake3::Hasher::new();
    for path in kernels.iter().chain(&sources(HARNESS, &["hpp", "cpp"])) {
        hasher.update(&std::fs::read(path).unwrap());
    }
    let name = format!("cuda-{}", hasher.finalize().to_hex());
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    if program.exists() {
        return Some(program);
    }

    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut includes = String::new();
    for path in &kernels {
        writeln!(includes, "#include {path:?}").unwrap();
    }
    std::fs::write(folder.path().join("kernels.inc"), includes).unwrap();
    std::fs::write(folder.path().join("names.inc"), "").unwrap();
    let compile = |arguments: &[&str]| {
        let mut command = Command::new(&compiler);
        // No products and sums in one, so that what is to have the processor's bits can.
        command.args([
            "-std=c++17",
            "-O1",
            "-U_FORTIFY_SOURCE",
            "-ffp-contract=off",
            "-Wno-unknown-pragmas",
            "-I",
        ]);
        command.arg(folder.path()).arg("-I").arg(HARNESS).args(arguments);
        let result = command.arg(Path::new(HARNESS).join("harness.cpp")).output().unwrap();
        assert!(result.status.success(), "{compiler}: {}", String::from_utf8_lossy(&result.stderr));
        String::from_utf8(result.stdout).unwrap()
    };
    let names: String = compile(&["-E", "-P"])
        .split("extern \"C\" void ")
        .skip(1)
        .filter_map(|kernel| Some(format!("LAUNCH({})\n", kernel.split_once('(')?.0)))
        .collect();
    std::fs::write(folder.path().join("names.inc"), names).unwrap();
    let made = folder.path().join("harness");
    compile(&["-o", made.to_str().unwrap()]);
    std::fs::rename(made, &program).unwrap();
    Some(program)
}

/// The files of a folder with these endings, in the endings' order and by name.
pub fn sources(folder: &str, endings: &[&'static str]) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    all.sort();
    let with = |ending: &'static str| {
        all.iter().filter(move |path| path.extension().is_some_and(|e| e == ending)).cloned()
    };
    endings.iter().copied().flat_map(with).collect()
}
