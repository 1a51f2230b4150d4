//! The matrix unit AMX of some x86-64 processors: products of bf16 tiles summed in f32.
//!
//! Knows its instructions, for which Rust has no intrinsics, and makes them safe to use. It does not know what the
//! tiles are parts of. No other operation has unsafe code.

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count};
use std::marker::PhantomData;
use std::sync::OnceLock;

/// Rows of a tile, and its columns of f32.
pub(super) const SIDE: usize = 16;

/// Depth of a tile: how many products one instruction adds to each sum.
pub(super) const STEP: usize = 32;

/// bf16 numbers of a tile; of a left factor `[16 rows, 32 deep]`.
pub(super) const TILE: usize = SIDE * STEP;

/// Proof that this process may use the unit.
#[derive(Clone, Copy)]
pub(super) struct Unit(());

impl Unit {
    /// The unit, where processor and system have it.
    pub fn get() -> Option<Self> {
        static USABLE: OnceLock<bool> = OnceLock::new();
        USABLE.get_or_init(|| supported() && permitted()).then_some(Self(()))
    }

    /// Readies the unit for the calling thread.
    pub fn configure(self) -> Session {
        let config = Config { palette: 1, start: 0, reserved: [0; 14], row_bytes: ROW_BYTES, rows: ROWS };
        // SAFETY: the unit exists and is permitted (`Unit::get`), and the configuration is a valid one of palette 1.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const config, options(nostack, readonly)) };
        Session(PhantomData)
    }
}

const ROW_BYTES: [u16; 16] = [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0];
const ROWS: [u8; 16] = [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0];

/// Shapes of the eight tile registers, as `ldtilecfg` reads them.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Whether the processor has tiles of bf16.
fn supported() -> bool {
    let (bf16, tiles) = (1 << 22, 1 << 24);
    __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & (bf16 | tiles) == bf16 | tiles
}

/// Asks Linux for permission to use the tiles' state, which it gives to all threads of the process.
fn permitted() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
    const TILE_DATA: u64 = 18;
    let result: i64;
    // SAFETY: this system call touches no memory of the process; it clobbers rcx and r11 only.
    unsafe {
        asm!("syscall", inlateout("rax") ARCH_PRCTL => result, in("rdi") ARCH_REQ_XCOMP_PERM, in("rsi") TILE_DATA,
            out("rcx") _, out("r11") _, options(nostack));
    }
    result == 0
}

/// The unit while it is configured for the thread that holds this.
pub(super) struct Session(PhantomData<*const ()>);

/// Sums of up to two tiles of rows times two of columns: `[row tile, column tile, 16, 16]`.
#[repr(align(64))]
pub(super) struct Sums(pub [[[[f32; SIDE]; SIDE]; 2]; 2]);

impl Sums {
    /// Space for sums.
    pub fn new() -> Self {
        Self([[[[0.0; SIDE]; SIDE]; 2]; 2])
    }
}

/// Memory that will be wanted soon: it is asked for while products are computed, some of it in every step.
pub(super) struct Ahead {
    /// Four lines a step, for reading.
    next: *const u8,
    /// What the next step adds to it, in bytes.
    next_step: usize,
    /// Two lines of each of two rows a step, for writing.
    row: *const u8,
    /// From row to row, in bytes.
    stride: usize,
}

impl Ahead {
    /// What is read next, as much of it as the steps of one product can ask for, and rows from one of their columns on
    /// to be written after it.
    pub fn new(next: &[u32], rows: &[&mut [f32]], column: usize) -> Self {
        let mut ahead = Self::none();
        if !next.is_empty() {
            (ahead.next, ahead.next_step) = (next.as_ptr().cast(), 4 * LINE);
        }
        if let [first, second, ..] = rows {
            ahead.row = first.as_ptr().wrapping_add(column).cast();
            ahead.stride = second.as_ptr().addr().wrapping_sub(first.as_ptr().addr());
        }
        ahead
    }

    /// Nothing.
    pub fn none() -> Self {
        // Asking for memory that does not exist would take longer than for what does.
        let line = NOTHING.as_ptr();
        Self { next: line, next_step: 0, row: line, stride: 0 }
    }

    /// Numbers of what is read next that so many steps ask for.
    pub fn reach(steps: usize) -> usize {
        4 * LINE / size_of::<u32>() * steps
    }
}

static NOTHING: [u8; 4 * LINE] = [0; 4 * LINE];

/// Bytes of a cache line.
const LINE: usize = 64;

impl Session {
    /// Products of 16 rows: `sums[0, c] = Σ_step x[step] · weight[step, c]` for tiles x `[step, 16, 32]` and pairs of
    /// numbers weight `[step, 2, 16 pairs, 16 columns]`.
    pub fn multiply_one(&self, x: &[u16], weight: &[u32], sums: &mut Sums) {
        let steps = steps(x, weight);
        // SAFETY: the tiles are configured; every load is of a whole tile of `steps` that the slices hold (checked by
        // `steps`), every store within `sums`.
        unsafe {
            asm!(
                "tilezero tmm0", "tilezero tmm1",
                "2:",
                "tileloadd tmm4, [{x} + {row}]",
                "tileloadd tmm6, [{w} + {row}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{w} + {row} + 1024]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "add {x}, 1024", "add {w}, 2048",
                "dec {steps}", "jnz 2b",
                "tilestored [{sums} + {row}], tmm0",
                "tilestored [{sums} + {row} + 1024], tmm1",
                x = inout(reg) x.as_ptr() => _, w = inout(reg) weight.as_ptr() => _, steps = inout(reg) steps => _,
                sums = in(reg) sums.0.as_mut_ptr(), row = in(reg) 64usize,
                out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _, options(nostack),
            );
        }
    }

    /// The same of two tiles of rows, each `[step, 16, 32]`, while other memory is brought closer.
    ///
    /// Tiles are loaded as early as the registers allow, three of four before the step that multiplies them: where
    /// another process works on the same core, the unit takes three times as long to load one.
    pub fn multiply_two(&self, x: [&[u16]; 2], weight: &[u32], sums: &mut Sums, ahead: &Ahead) {
        let count = steps(x[0], weight);
        assert_eq!(steps(x[1], weight), count);
        // SAFETY: as in `multiply_one`: the last step loads the second tile of rows only. What is asked for ahead need
        // not exist.
        unsafe {
            asm!(
                "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                "tileloadd tmm4, [{x} + {line}]",
                "tileloadd tmm6, [{w} + {line}]",
                "tileloadd tmm7, [{w} + {line} + 1024]",
                "dec {steps}", "jz 3f",
                "2:",
                "add {x}, 1024", "add {w}, 2048",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{x2} + {line}]",
                "prefetcht1 [{next}]", "prefetcht1 [{next} + 64]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm4, [{x} + {line}]",
                "prefetcht1 [{next} + 128]", "prefetcht1 [{next} + 192]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tileloadd tmm6, [{w} + {line}]",
                "prefetchw [{row}]", "prefetchw [{row} + 64]",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "tileloadd tmm7, [{w} + {line} + 1024]",
                "prefetchw [{row} + {stride}]", "prefetchw [{row} + {stride} + 64]",
                "add {x2}, 1024", "add {next}, {next_step}", "lea {row}, [{row} + 2 * {stride}]",
                "dec {steps}", "jnz 2b",
                "3:",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{x2} + {line}]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "tilestored [{sums} + {line}], tmm0",
                "tilestored [{sums} + {line} + 1024], tmm1",
                "tilestored [{sums} + {line} + 2048], tmm2",
                "tilestored [{sums} + {line} + 3072], tmm3",
                x = inout(reg) x[0].as_ptr() => _, x2 = inout(reg) x[1].as_ptr() => _,
                w = inout(reg) weight.as_ptr() => _, steps = inout(reg) count => _,
                next = inout(reg) ahead.next => _, next_step = in(reg) ahead.next_step,
                row = inout(reg) ahead.row => _, stride = in(reg) ahead.stride,
                sums = in(reg) sums.0.as_mut_ptr(), line = in(reg) LINE,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _, out("tmm5") _,
                out("tmm6") _, out("tmm7") _, options(nostack),
            );
        }
    }
}

/// How many steps the factors hold.
fn steps(x: &[u16], weight: &[u32]) -> usize {
    let steps = x.len() / TILE;
    assert!(steps > 0 && x.len() == steps * TILE && weight.len() == steps * TILE, "tiles of unequal depth");
    steps
}

impl Drop for Session {
    fn drop(&mut self) {
        // SAFETY: the unit exists; nothing is kept in tiles between products.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}
