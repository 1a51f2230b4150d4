//! The matrix unit AMX of some x86-64 processors: products of bf16 tiles summed in f32.
//!
//! Knows its instructions, for which Rust has no intrinsics, and makes them safe to use. It does not know what the
//! tiles are parts of.

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count};
use std::marker::PhantomData;
use std::sync::OnceLock;

use super::Product;
use super::ahead::{Ahead, LINE};
use super::target::Height;
use crate::model::ops::matmul::parts::Parts;

/// Proof that this process may use the unit.
#[derive(Clone, Copy)]
pub struct Matrix(());

impl Matrix {
    /// The unit, where processor and system have it.
    pub fn get() -> Option<Self> {
        static USABLE: OnceLock<bool> = OnceLock::new();
        USABLE.get_or_init(|| supported() && permitted()).then_some(Self(()))
    }

    /// Readies the unit for the calling thread.
    pub fn configure(self) -> Session {
        let config = Config { palette: 1, start: 0, reserved: [0; 14], row_bytes: ROW_BYTES, rows: ROWS };
        // SAFETY: the unit exists and is permitted (`get`), and the configuration is a valid one of palette 1.
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
    let needed = 1 << 22 | 1 << 24;
    __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & needed == needed
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
pub struct Session(PhantomData<*const ()>);

/// Loads one of the two tiles of a part of x or of the weight.
macro_rules! load {
    ($tile:literal, $factor:literal, $part:literal, $which:literal) => {
        concat!(
            "tileloadd tmm",
            $tile,
            ", [{",
            $factor,
            "} + {line} + 2048*",
            $part,
            " + 1024*",
            $which,
            "]\n"
        )
    };
}

/// Adds the product of two tiles.
macro_rules! multiply {
    ($sums:literal, $x:literal, $weight:literal) => {
        concat!("tdpbf16ps tmm", $sums, ", tmm", $x, ", tmm", $weight, "\n")
    };
}

/// Between any two of the unit's instructions, eight others have to stand: where another process runs on the same
/// core, the unit otherwise takes nearly twice as long. These do nothing.
macro_rules! pause {
    () => {
        "nop\nnop\nnop\nnop\nnop\nnop\nnop\nnop\n"
    };
}

/// These bring eight lines of the next step closer, of a factor that has so many bytes in a step.
macro_rules! bring {
    ($factor:literal, $step:literal, $eighth:literal) => {
        concat!(
            bring!(@ $factor, $step, $eighth, 0), bring!(@ $factor, $step, $eighth, 1),
            bring!(@ $factor, $step, $eighth, 2), bring!(@ $factor, $step, $eighth, 3),
            bring!(@ $factor, $step, $eighth, 4), bring!(@ $factor, $step, $eighth, 5),
            bring!(@ $factor, $step, $eighth, 6), bring!(@ $factor, $step, $eighth, 7),
        )
    };
    (@ $factor:literal, $step:literal, $eighth:literal, $line:literal) => {
        concat!("prefetcht0 [{", $factor, "} + ", $step, " + 512*", $eighth, " + 64*", $line, "]\n")
    };
}

/// These ask for what is read next.
macro_rules! ask_to_read {
    () => {
        "prefetcht1 [{read}]\nprefetcht1 [{read} + 64]\nprefetcht1 [{read} + 128]\nprefetcht1 [{read} + 192]\n\
         add {read}, {read_stride}\n\
         prefetcht1 [{read}]\nprefetcht1 [{read} + 64]\nprefetcht1 [{read} + 128]\nprefetcht1 [{read} + 192]\n\
         add {read}, {read_stride}\n"
    };
}

/// These ask for the rows that the sums go to.
macro_rules! ask_to_write {
    () => {
        "prefetchw [{write}]\nprefetchw [{write} + 64]\nadd {write}, {write_stride}\n\
         prefetchw [{write}]\nprefetchw [{write} + 64]\nadd {write}, {write_stride}\nnop\nnop\n"
    };
}

/// Both tiles of a part of the weight are loaded.
macro_rules! weight {
    ($part:literal; $a:expr, $b:expr) => {
        concat!(load!(6, "w", $part, 0), $a, load!(7, "w", $part, 1), $b)
    };
}

/// Both tiles of a part of x are loaded and multiplied with those of the weight.
macro_rules! rows {
    ($part:literal; $a:expr, $b:expr, $c:expr, $d:expr, $e:expr, $f:expr) => {
        concat!(
            load!(4, "x", $part, 0),
            $a,
            multiply!(0, 4, 6),
            $b,
            multiply!(1, 4, 7),
            $c,
            load!(5, "x", $part, 1),
            $d,
            multiply!(2, 5, 6),
            $e,
            multiply!(3, 5, 7),
            $f,
        )
    };
}

/// The upper tile of a part of x is loaded and multiplied with those of the weight.
macro_rules! upper_rows {
    ($part:literal; $a:expr, $b:expr, $c:expr) => {
        concat!(load!(4, "x", $part, 0), $a, multiply!(0, 4, 6), $b, multiply!(1, 4, 7), $c)
    };
}

/// The upper tile of x that was loaded last is multiplied with those of the weight.
macro_rules! same_upper_rows {
    ($a:expr, $b:expr) => {
        concat!(multiply!(0, 4, 6), $a, multiply!(1, 4, 7), $b)
    };
}

/// The tiles of x that were loaded last are multiplied with those of the weight.
macro_rules! same_rows {
    ($a:expr, $b:expr, $c:expr, $d:expr) => {
        concat!(
            multiply!(0, 4, 6),
            $a,
            multiply!(1, 4, 7),
            $b,
            multiply!(2, 5, 6),
            $c,
            multiply!(3, 5, 7),
            $d,
        )
    };
}

/// The sums of a product begin with zero, or with numbers that are somewhere, and go where they belong.
macro_rules! sums {
    (begin One) => {
        concat!(
            "test {begin}, {begin}\njz 3f\n",
            "tileloadd tmm0, [{begin} + {begin_stride}]\ntileloadd tmm1, [{begin} + {begin_stride} + 64]\n",
            "jmp 2f\n3:\ntilezero tmm0\ntilezero tmm1\n",
        )
    };
    (begin Two) => {
        concat!(
            "test {begin}, {begin}\njz 3f\n",
            "tileloadd tmm0, [{begin} + {begin_stride}]\ntileloadd tmm1, [{begin} + {begin_stride} + 64]\n",
            "lea {begin}, [{begin} + 8*{begin_stride}]\nlea {begin}, [{begin} + 8*{begin_stride}]\n",
            "tileloadd tmm2, [{begin} + {begin_stride}]\ntileloadd tmm3, [{begin} + {begin_stride} + 64]\n",
            "jmp 2f\n3:\ntilezero tmm0\ntilezero tmm1\ntilezero tmm2\ntilezero tmm3\n",
        )
    };
    (end One) => {
        "tilestored [{end} + {stride}], tmm0\ntilestored [{end} + {stride} + 64], tmm1\n"
    };
    (end Two) => {
        concat!(
            "tilestored [{end} + {stride}], tmm0\ntilestored [{end} + {stride} + 64], tmm1\n",
            "lea {end}, [{end} + 8*{stride}]\nlea {end}, [{end} + 8*{stride}]\n",
            "tilestored [{end} + {stride}], tmm2\ntilestored [{end} + {stride} + 64], tmm3\n",
        )
    };
}

/// All steps of a product of which one step has so many bytes of x and of the weight.
macro_rules! product {
    ($height:ident, $x:ident, $weight:ident, $count:ident, $begin:ident, $target:ident, $ahead:ident, $write:ident;
        $x_step:literal, $w_step:literal; $step:expr) => {
        asm!(
            sums!(begin $height),
            "2:",
            $step,
            concat!("add {x}, ", $x_step), concat!("add {w}, ", $w_step),
            "dec {steps}", "jnz 2b",
            sums!(end $height),
            x = inout(reg) $x.as_ptr() => _, w = inout(reg) $weight.as_ptr() => _, steps = inout(reg) $count => _,
            read = inout(reg) $ahead.read => _, read_stride = in(reg) $ahead.read_stride,
            write = inout(reg) $write.0 => _, write_stride = in(reg) $write.1,
            begin = inout(reg) $begin.0 => _, begin_stride = in(reg) $begin.1,
            end = inout(reg) $target.first => _, stride = in(reg) $target.stride, line = in(reg) LINE,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _, out("tmm5") _,
            out("tmm6") _, out("tmm7") _, options(nostack),
        )
    };
}

impl Session {
    /// Computes a product, while other memory is brought closer.
    pub(super) fn multiply(&self, product: Product, ahead: &Ahead) {
        let Product { parts, steps: count, x, weight, begin, target } = product;
        let begin = begin.map_or((std::ptr::null(), 0), |begin| (begin.first, begin.stride));
        // Of the sums' own place where nothing else is written: of memory that all threads know they would take it from each
        // other.
        let write = ahead.write.unwrap_or((target.first.cast_const().cast(), 0));
        // SAFETY: the tiles are configured; every load is of a whole tile of one of `count` steps, which the slices hold
        // (`Product`), or of sums within what they begin with; every store is within `target`. What is asked for
        // ahead need not exist.
        unsafe {
            match (parts, target.height) {
                (Parts::Rounded, Height::Two) => {
                    product!(Two, x, weight, count, begin, target, ahead, write; 2048, 2048; concat!(
                        weight!(0; bring!("x", 2048, 0), bring!("x", 2048, 1)),
                        rows!(0; bring!("x", 2048, 2), bring!("x", 2048, 3), bring!("w", 2048, 0), bring!("w", 2048, 1),
                            bring!("w", 2048, 2), concat!(bring!("w", 2048, 3), ask_to_read!(), ask_to_write!())),
                    ));
                }
                (Parts::Rounded, Height::One) => {
                    product!(One, x, weight, count, begin, target, ahead, write; 2048, 2048; concat!(
                        weight!(0; bring!("x", 2048, 0), bring!("x", 2048, 1)),
                        upper_rows!(0; bring!("w", 2048, 0), concat!(bring!("w", 2048, 1), bring!("w", 2048, 2)),
                            concat!(bring!("w", 2048, 3), ask_to_read!(), ask_to_write!())),
                    ));
                }
                (Parts::One, Height::Two) => {
                    product!(Two, x, weight, count, begin, target, ahead, write; 6144, 2048; concat!(
                        weight!(0; bring!("x", 6144, 0), bring!("x", 6144, 1)),
                        rows!(2; bring!("x", 6144, 2), bring!("x", 6144, 3), bring!("x", 6144, 4), bring!("x", 6144, 5),
                            bring!("x", 6144, 6), bring!("x", 6144, 7)),
                        rows!(1; bring!("x", 6144, 8), bring!("x", 6144, 9), bring!("x", 6144, 10), bring!("x", 6144, 11),
                            bring!("w", 2048, 0), bring!("w", 2048, 1)),
                        rows!(0; bring!("w", 2048, 2), bring!("w", 2048, 3), ask_to_read!(), pause!(), ask_to_write!(),
                            pause!()),
                    ));
                }
                (Parts::One, Height::One) => {
                    product!(One, x, weight, count, begin, target, ahead, write; 6144, 2048; concat!(
                        weight!(0; bring!("x", 6144, 0), bring!("x", 6144, 1)),
                        upper_rows!(2; bring!("x", 6144, 4), bring!("x", 6144, 5), bring!("x", 6144, 8)),
                        upper_rows!(1; bring!("x", 6144, 9), bring!("w", 2048, 0), bring!("w", 2048, 1)),
                        upper_rows!(0; bring!("w", 2048, 2), bring!("w", 2048, 3),
                            concat!(ask_to_read!(), ask_to_write!())),
                    ));
                }
                (Parts::Two, Height::Two) => {
                    product!(Two, x, weight, count, begin, target, ahead, write; 6144, 4096; concat!(
                        weight!(0; bring!("x", 6144, 0), bring!("x", 6144, 1)),
                        rows!(2; bring!("x", 6144, 2), bring!("x", 6144, 3), bring!("x", 6144, 4), bring!("x", 6144, 5),
                            bring!("x", 6144, 6), bring!("x", 6144, 7)),
                        rows!(0; bring!("x", 6144, 8), bring!("x", 6144, 9), bring!("x", 6144, 10), bring!("x", 6144, 11),
                            bring!("w", 4096, 0), bring!("w", 4096, 1)),
                        rows!(1; bring!("w", 4096, 2), bring!("w", 4096, 3), bring!("w", 4096, 4), bring!("w", 4096, 5),
                            bring!("w", 4096, 6), bring!("w", 4096, 7)),
                        weight!(1; ask_to_read!(), ask_to_write!()),
                        same_rows!(pause!(), pause!(), ask_to_read!(), pause!()),
                        rows!(0; pause!(), pause!(), pause!(), pause!(), pause!(), pause!()),
                    ));
                }
                (Parts::Two, Height::One) => {
                    product!(One, x, weight, count, begin, target, ahead, write; 6144, 4096; concat!(
                        weight!(0; bring!("x", 6144, 0), bring!("x", 6144, 1)),
                        upper_rows!(2; bring!("x", 6144, 4), bring!("x", 6144, 5), bring!("x", 6144, 8)),
                        upper_rows!(0; bring!("x", 6144, 9), bring!("w", 4096, 0), bring!("w", 4096, 1)),
                        upper_rows!(1; bring!("w", 4096, 2), bring!("w", 4096, 3), bring!("w", 4096, 4)),
                        weight!(1; bring!("w", 4096, 5), bring!("w", 4096, 6)),
                        same_upper_rows!(bring!("w", 4096, 7), ask_to_read!()),
                        upper_rows!(0; ask_to_write!(), ask_to_read!(), pause!()),
                    ));
                }
                (Parts::Three, Height::Two) => {
                    product!(Two, x, weight, count, begin, target, ahead, write; 6144, 6144; concat!(
                        weight!(0; bring!("x", 6144, 0), bring!("x", 6144, 1)),
                        rows!(2; bring!("x", 6144, 2), bring!("x", 6144, 3), bring!("x", 6144, 4), bring!("x", 6144, 5),
                            bring!("x", 6144, 6), bring!("x", 6144, 7)),
                        rows!(0; bring!("x", 6144, 8), bring!("x", 6144, 9), bring!("x", 6144, 10), bring!("x", 6144, 11),
                            bring!("w", 6144, 0), bring!("w", 6144, 1)),
                        rows!(1; bring!("w", 6144, 2), bring!("w", 6144, 3), bring!("w", 6144, 4), bring!("w", 6144, 5),
                            bring!("w", 6144, 6), bring!("w", 6144, 7)),
                        weight!(1; bring!("w", 6144, 8), bring!("w", 6144, 9)),
                        same_rows!(pause!(), pause!(), pause!(), pause!()),
                        rows!(0; bring!("w", 6144, 10), bring!("w", 6144, 11), ask_to_read!(), pause!(), ask_to_write!(),
                            pause!()),
                        weight!(2; pause!(), pause!()),
                        same_rows!(ask_to_read!(), pause!(), pause!(), pause!()),
                    ));
                }
                (Parts::Three, Height::One) => {
                    product!(One, x, weight, count, begin, target, ahead, write; 6144, 6144; concat!(
                        weight!(0; bring!("x", 6144, 0), bring!("x", 6144, 1)),
                        upper_rows!(2; bring!("x", 6144, 4), bring!("x", 6144, 5), bring!("x", 6144, 8)),
                        upper_rows!(0; bring!("x", 6144, 9), bring!("w", 6144, 0), bring!("w", 6144, 1)),
                        upper_rows!(1; bring!("w", 6144, 2), bring!("w", 6144, 3), bring!("w", 6144, 4)),
                        weight!(1; bring!("w", 6144, 5), bring!("w", 6144, 6)),
                        same_upper_rows!(bring!("w", 6144, 7), bring!("w", 6144, 8)),
                        upper_rows!(0; bring!("w", 6144, 9), bring!("w", 6144, 10), bring!("w", 6144, 11)),
                        weight!(2; ask_to_read!(), ask_to_write!()),
                        same_upper_rows!(ask_to_read!(), pause!()),
                    ));
                }
            }
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // SAFETY: the unit exists; nothing is kept in tiles between products.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}
