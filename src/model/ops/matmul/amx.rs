//! The matrix unit AMX of some x86-64 processors: products of bf16 tiles summed in f32.
//!
//! Knows its instructions, for which Rust has no intrinsics, and makes them safe to use. It does not know what the
//! tiles are parts of. No other operation has unsafe code.

use pulp::bytemuck::cast;
use pulp::f32x16;
use pulp::x86::V4;
use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count, __m512, __m512i};
use std::marker::PhantomData;
use std::sync::OnceLock;

use super::ROWS_AT_A_TIME;
use super::pack::Run;
use super::parts::Parts;

/// Rows of a tile, and its columns of f32.
pub(super) const SIDE: usize = ROWS_AT_A_TIME;

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

    /// Twice sixteen numbers rounded to bf16, to nearest even; what is below the normal numbers becomes 0, as which the unit
    /// takes it.
    #[inline(always)]
    pub fn rounded(self, _: V4, first: f32x16, second: f32x16) -> [u16; STEP] {
        // SAFETY: the processor has the instruction (`supported`), and the vectors that it works on (`V4`).
        cast(unsafe { rounded(cast(first), cast(second)) })
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

/// Whether the processor has tiles of bf16, and vectors that are rounded to it.
fn supported() -> bool {
    let (bf16, tiles, vectors) = (1 << 22, 1 << 24, 1 << 5);
    let has_tiles = || __cpuid_count(7, 0).edx & (bf16 | tiles) == bf16 | tiles;
    __cpuid(0).eax >= 7 && has_tiles() && __cpuid_count(7, 1).eax & vectors > 0
}

/// The instruction behind [`Unit::rounded`].
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn rounded(first: __m512, second: __m512) -> __m512i {
    let both;
    // SAFETY: the caller's processor has the instruction, which touches registers alone.
    unsafe {
        asm!("vcvtne2ps2bf16 {both}, {second}, {first}", both = lateout(zmm_reg) both, first = in(zmm_reg) first,
            second = in(zmm_reg) second, options(pure, nomem, nostack, preserves_flags));
    }
    both
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

/// Rows and columns of sums that a product computes: two tiles of each.
pub(super) const SQUARE: usize = 2 * SIDE;

/// Rows of a matrix that products can be written to.
pub(super) struct Output<'a, 'y> {
    rows: &'a mut [&'y mut [f32]],
    /// From row to row, in bytes, where all are equally far apart.
    stride: Option<usize>,
    /// Of the shortest row.
    len: usize,
}

impl<'a, 'y> Output<'a, 'y> {
    /// Rows of any lengths anywhere.
    pub fn new(rows: &'a mut [&'y mut [f32]]) -> Self {
        let mut places = rows.iter_mut().map(|row| row.as_mut_ptr().expose_provenance());
        let stride = places.next().zip(places.next()).map(|(first, second)| {
            let stride = second.wrapping_sub(first);
            let mut last = second;
            let even = places.all(|place| place.wrapping_sub(std::mem::replace(&mut last, place)) == stride);
            even.then_some(stride)
        });
        let len = rows.iter().map(|row| row.len()).min().unwrap_or(0);
        Self { rows, stride: stride.flatten(), len }
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Some of the rows, at most 32.
    pub fn square(&mut self, first: usize) -> impl Iterator<Item = &mut [f32]> {
        self.rows.iter_mut().skip(first).take(SQUARE).map(|row| &mut **row)
    }

    /// 32 columns of so many rows, if there are so many, equally far apart.
    pub fn target(&mut self, (row, height): (usize, Height), column: usize) -> Option<Target<'_>> {
        if row + height.rows() > self.rows.len() || column + SQUARE > self.len {
            return None;
        }
        let first = self.rows[row][column..].as_mut_ptr().addr();
        let first = std::ptr::with_exposed_provenance_mut(first);
        Some(Target { first, stride: self.stride?, height, rows: PhantomData })
    }
}

/// How many rows of sums a product computes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Height {
    /// 16: one tile of x.
    One,
    /// 32: two.
    Two,
}

impl Height {
    /// Of what is needed for so many rows, at most 32.
    pub fn of(rows: usize) -> Self {
        if rows <= SIDE { Self::One } else { Self::Two }
    }

    fn rows(self) -> usize {
        match self {
            Self::One => SIDE,
            Self::Two => SQUARE,
        }
    }
}

/// Where the sums of a product go: 32 columns of 16 or 32 rows.
pub(super) struct Target<'a> {
    first: *mut f32,
    /// From row to row, in bytes.
    stride: usize,
    height: Height,
    rows: PhantomData<&'a mut [f32]>,
}

impl<'a> Target<'a> {
    /// Rows end to end.
    pub fn of(rows: &'a mut [[f32; SQUARE]; SQUARE]) -> Self {
        let stride = size_of::<[f32; SQUARE]>();
        Self { first: rows.as_mut_ptr().cast(), stride, height: Height::Two, rows: PhantomData }
    }

    /// Rows of a matrix `[.., width]`, from a row and a column on.
    ///
    /// # Panics
    /// They are not within it.
    pub fn within(
        matrix: &'a mut [f32],
        width: usize,
        (row, height): (usize, Height),
        column: usize,
    ) -> Self {
        assert!(column + SQUARE <= width, "32 columns from {column} on of rows of {width}");
        let rows = &mut matrix[row * width..(row + height.rows()) * width];
        let stride = width * size_of::<f32>();
        Self { first: rows[column..].as_mut_ptr(), stride, height, rows: PhantomData }
    }
}

/// What the sums of a product begin with.
#[derive(Clone, Copy)]
pub(super) enum Begin<'a> {
    /// Zero.
    Zero,
    /// What is there already.
    There,
    /// These, as many rows and columns as the product has.
    With(Added<'a>),
}

/// 32 columns of 16 or 32 rows that are added to a product.
#[derive(Clone, Copy)]
pub(super) struct Added<'a> {
    first: *const f32,
    /// From row to row, in bytes.
    stride: usize,
    height: Height,
    rows: PhantomData<&'a [f32]>,
}

impl<'a> Added<'a> {
    /// The first columns of rows that are `width` numbers long, if there are so many; with a width of 0 it is the same
    /// row again and again.
    pub fn of(rows: &'a [f32], width: usize, height: Height) -> Option<Self> {
        let all = (height.rows() - 1) * width + SQUARE;
        let stride = width * size_of::<f32>();
        (rows.len() >= all).then_some(Self { first: rows.as_ptr(), stride, height, rows: PhantomData })
    }
}

/// Space for the sums of a product that do not go where they belong at once.
#[repr(align(64))]
pub(super) struct Sums(pub [[f32; SQUARE]; SQUARE]);

impl Sums {
    /// Space for sums.
    pub fn new() -> Self {
        Self([[0.0; SQUARE]; SQUARE])
    }

    /// So many rows of it.
    pub fn target(&mut self, height: Height) -> Target<'_> {
        Target { height, ..Target::of(&mut self.0) }
    }
}

/// Memory that will be wanted soon: it is asked for while products are computed, some of it in every step.
pub(super) struct Ahead {
    /// Four lines of each of two rows a step, for reading.
    read: *const u8,
    /// From row to row, in bytes.
    read_stride: usize,
    /// Two lines of each of two rows a step, for writing: the first and how far rows are apart.
    write: Option<(*const u8, usize)>,
}

impl Ahead {
    /// Nothing.
    pub fn none() -> Self {
        // Asking for memory that does not exist would take longer than for what does.
        let line = NOTHING.as_ptr();
        Self { read: line, read_stride: 0, write: None }
    }

    /// And numbers that are read next: as many in a row as two steps ask for at most.
    pub fn and_read(self, numbers: &[u32]) -> Self {
        if numbers.is_empty() {
            return self;
        }
        Self { read: numbers.as_ptr().cast(), read_stride: WIDTH, ..self }
    }

    /// And the next rows of what is read next.
    pub fn and_read_rows(self, rows: Option<Run>) -> Self {
        match rows {
            Some(Run { first, stride }) => {
                Self { read: std::ptr::from_ref(first), read_stride: stride, ..self }
            }
            None => self,
        }
    }

    /// And what is written after the product: rows from this one on, from one of their columns on.
    pub fn and_write(self, output: &Output, row: usize, column: usize) -> Self {
        let row = output.rows.get(row).zip(output.stride);
        Self { write: row.map(|(row, stride)| (row.as_ptr().wrapping_add(column).cast(), stride)), ..self }
    }
}

/// Bytes of a row that a step asks for, for reading.
pub(super) const WIDTH: usize = 4 * LINE;

/// Rows of which a step asks for so much.
pub(super) fn rows_a_step(parts: Parts) -> usize {
    match parts {
        Parts::Rounded | Parts::One => 2,
        Parts::Two | Parts::Three => 4,
    }
}

static NOTHING: [u8; WIDTH] = [0; WIDTH];

/// Bytes of a cache line.
const LINE: usize = 64;

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
    /// Products of tiles of rows with two of columns: `target[r, c] = begin + Σ_step Σ_(i, j) x[step, i, r] ·
    /// weight[step, j, c]` over the pairs of parts that count, for x `[step, part, 2, 16, 32]`, of which the second of two
    /// tiles counts where the target has 32 rows, and pairs of numbers weight `[step, part, 2, 16 pairs, 16 columns]`,
    /// while other memory is brought closer.
    pub fn multiply(
        &self,
        parts: Parts,
        (x, weight): (&[u16], &[u32]),
        begin: Begin,
        target: Target,
        ahead: &Ahead,
    ) {
        let count = x.len() / (2 * TILE * parts.of_x());
        assert!(
            count > 0 && x.len() == count * 2 * TILE * parts.of_x(),
            "tiles of x do not make up whole steps"
        );
        assert_eq!(weight.len(), count * TILE * parts.of_weight(), "tiles of unequal depth");
        let begin = match begin {
            Begin::Zero => (std::ptr::null(), 0),
            Begin::There => (target.first.cast_const(), target.stride),
            Begin::With(Added { first, stride, height, .. }) => {
                assert!(height == target.height, "as many rows are added as there are sums");
                (first, stride)
            }
        };
        // Of the sums' own place where nothing else is written: of memory that all threads know they would take it from each
        // other.
        let write = ahead.write.unwrap_or((target.first.cast_const().cast(), 0));
        // SAFETY: the tiles are configured; every load is of a whole tile of one of `count` steps, which the slices hold
        // (checked above), or of sums within what they begin with; every store is within `target`. What is asked for
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

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    #[test]
    fn numbers_are_rounded_to_the_nearest_bf16() {
        let (Some(unit), pulp::Arch::V4(simd)) = (Unit::get(), pulp::Arch::new()) else { return };
        let ties =
            [0x3f80_8000, 0x3f81_8000, 0x3f80_8001, 0x7f7f_ffff, 0x7f80_0000, 0xff80_0000, 0, 0x8000_0000];
        let numbers: Vec<f32> = (0..64_000u32)
            .map(|i| i.wrapping_mul(0x9e37_79b9))
            .chain(ties.into_iter().cycle().take(STEP))
            .map(f32::from_bits)
            .map(|x| if x.is_nan() || x.is_subnormal() { 1.0 } else { x })
            .collect();
        for numbers in numbers.as_chunks::<STEP>().0 {
            let [first, second]: [f32x16; 2] = cast(*numbers);
            let ours = unit.rounded(simd, first, second);
            assert_eq!(ours, numbers.map(|x| bf16::from_f32(x).to_bits()), "{numbers:?}");
        }
        let ours = unit.rounded(simd, cast([f32::NAN; SIDE]), cast([1e-40f32; SIDE]));
        assert!(ours[..SIDE].iter().all(|bits| bf16::from_bits(*bits).is_nan()));
        assert_eq!(ours[SIDE..], [0; SIDE]);
    }
}
