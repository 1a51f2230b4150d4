//! A card by launches of kernels and products: each operation of [`Card`] as one or a few of them, and memory that is
//! used again.
//!
//! Does not know who carries launches out: CUDA's driver, or in tests an emulation on the processor.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::super::numerics::{Numbers, Numerics};
use super::super::ops::activation::Activation;
use super::super::ops::rotary::Direction;
use super::CardError;
use super::card::{
    Attended, Attending, AttentionOn, Card, Columns, Factor, Groups, Kind, MaskOn, Matrix, NormOn, Normed,
    Onto, Over, Result, TensorOn, Words,
};

/// Logits that one block of a kernel looks at.
const SPLIT: usize = 8192;
/// Rows that one block of a kernel adds up.
const CHUNK: usize = 64;
/// Blocks that a tensor's squares are added up by, at most.
const SQUARES: usize = 1024;

/// Who carries out what is asked of a card: all of it in the order in which it is asked.
pub trait Driver: Send + Sync + 'static {
    /// Work that was recorded.
    type Recorded;

    /// Memory of so many bytes, at a multiple of 256.
    ///
    /// # Errors
    /// `None`: there is no room.
    fn allocate(&self, bytes: usize) -> Result<Option<u64>>;
    /// Gives memory back.
    fn free(&self, pointer: u64);
    /// Waits for all that was asked.
    fn wait(&self) -> Result<()>;
    /// Copies words to the card; they have been taken when it returns.
    fn write(&self, to: u64, from: &[u32]) -> Result<()>;
    /// Waits, and copies words from the card.
    fn read(&self, to: &mut [u32], from: u64) -> Result<()>;
    /// Copies bytes on the card.
    fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()>;
    /// Zeros.
    fn zero(&self, at: u64, bytes: usize) -> Result<()>;
    /// Launches a kernel.
    fn launch(&self, kernel: &str, threads: Threads, arguments: &[Arg]) -> Result<()>;
    /// Computes a product.
    fn multiply(&self, product: &Product) -> Result<()>;
    /// Records what `work` asks for; `None`: this can't be recorded.
    fn record(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Option<Self::Recorded>>;
    /// Asks for all that was recorded.
    fn replay(&self, recorded: &Self::Recorded) -> Result<()>;
}

/// An argument of a kernel.
#[derive(Clone, Copy, Debug)]
pub enum Arg {
    /// A place in the card's memory; 0: none.
    At(u64),
    /// 32 bits with a sign.
    Int(i32),
    /// 64 bits with a sign.
    Long(i64),
    /// 32 bits.
    Unsigned(u32),
    /// A float of 32 bits.
    Float(f32),
    /// One of 64 bits.
    Double(f64),
}

/// How many threads there are.
#[derive(Clone, Copy, Debug)]
pub struct Threads {
    /// Blocks.
    pub grid: (usize, usize),
    /// Threads of a block.
    pub block: (u32, u32),
    /// Dynamic shared memory of a block, in bytes.
    pub shared: u32,
}

/// A product of column-major matrices, as cuBLAS has it: `c[m, n] = a[m, k] · b[k, n]`, or added to `c`.
#[derive(Clone, Copy, Debug)]
pub struct Product {
    /// Whether `a` and `b` lie the other way around.
    pub turned: [bool; 2],
    /// `m`, `n` and `k`.
    pub sizes: (usize, usize, usize),
    /// Where `a` is, and how far its columns are apart.
    pub a: (u64, usize),
    /// The same of `b`.
    pub b: (u64, usize),
    /// The same of `c`, which is f32.
    pub c: (u64, usize),
    /// What becomes of what stands in `c`.
    pub onto: Onto,
    /// The kind of `a` and `b`.
    pub kind: Kind,
    /// Whether f32 factors may be rounded to tf32.
    pub tf32: bool,
}

/// A card that computes in one kind of numbers.
pub struct Launches<D: Driver> {
    home: Arc<Home<D>>,
    kind: Kind,
    tf32: bool,
}

/// What all uses of a card share.
pub struct Home<D: Driver> {
    /// Who carries things out.
    pub driver: D,
    pool: Mutex<Pool>,
}

/// Memory that nobody holds, by size, and what there is of it.
#[derive(Default)]
struct Pool {
    free: BTreeMap<usize, Vec<u64>>,
    used: u64,
    peak: u64,
    reserved: u64,
    limit: Option<u64>,
}

/// A stretch of a card's memory; it goes back to the pool.
pub struct Memory<D: Driver> {
    pointer: u64,
    bytes: usize,
    home: Arc<Home<D>>,
}

impl<D: Driver> Drop for Memory<D> {
    fn drop(&mut self) {
        let mut pool = lock(&self.home.pool);
        pool.used -= self.bytes as u64;
        pool.free.entry(self.bytes).or_default().push(self.pointer);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<D: Driver> Home<D> {
    /// Of whoever carries things out, and at most so many bytes of memory.
    pub fn new(driver: D, limit: Option<u64>) -> Self {
        Self { driver, pool: Mutex::new(Pool { limit, ..Pool::default() }) }
    }

    /// The bytes that a stretch of memory takes up: few sizes, so that memory is used again.
    fn size(bytes: usize) -> usize {
        let step = (bytes.next_power_of_two() / 8).max(512);
        bytes.max(1).next_multiple_of(step)
    }

    fn allocate(self: &Arc<Self>, bytes: usize) -> Result<Memory<D>> {
        let bytes = Self::size(bytes);
        let mut pool = lock(&self.pool);
        let pointer = match pool.free.get_mut(&bytes).and_then(Vec::pop) {
            Some(pointer) => pointer,
            None => {
                let error = CardError::OutOfMemory { needed: bytes as u64, used: pool.used };
                if pool.limit.is_some_and(|limit| pool.reserved + bytes as u64 > limit) {
                    return Err(error);
                }
                let pointer = self.driver.allocate(bytes)?.ok_or(error)?;
                pool.reserved += bytes as u64;
                pointer
            }
        };
        pool.used += bytes as u64;
        pool.peak = pool.peak.max(pool.used);
        Ok(Memory { pointer, bytes, home: self.clone() })
    }
}

/// Where words are.
fn place<D: Driver>(words: &Words<Launches<D>>) -> Arg {
    Arg::At(pointer(words))
}

fn place_of<D: Driver>(words: Option<&Words<Launches<D>>>) -> Arg {
    words.map_or(Arg::At(0), place)
}

fn pointer<D: Driver>(words: &Words<Launches<D>>) -> u64 {
    words.memory.pointer + 4 * words.first as u64
}

fn int(number: usize) -> Arg {
    Arg::Int(number as i32)
}

/// A mask's three arguments.
fn mask_of<D: Driver>(mask: Option<&MaskOn<Launches<D>>>) -> [Arg; 3] {
    match mask {
        None => [Arg::At(0), Arg::Unsigned(0), Arg::Float(1.0)],
        Some(mask) => [place(&mask.key), Arg::Unsigned(mask.threshold), Arg::Float(mask.scale)],
    }
}

/// The eight arguments that say where heads are.
fn shape_of<D: Driver>(attention: &AttentionOn<Launches<D>>) -> [Arg; 8] {
    let Columns { first, step, heads, dim } = attention.keys;
    [
        int(attention.heads),
        int(heads),
        int(dim),
        int(first),
        int(attention.first_value),
        int(step),
        Arg::Float(attention.scale),
        place_of(attention.slopes.as_ref()),
    ]
}

/// A block for each row.
fn rows(rows: usize) -> Threads {
    Threads { grid: (rows, 1), block: (256, 1), shared: 0 }
}

/// Threads for so many numbers, each of which takes several.
fn flat(numbers: usize) -> Threads {
    Threads { grid: (numbers.div_ceil(1024).clamp(1, 2048), 1), block: (256, 1), shared: 0 }
}

/// Blocks for each row of logits.
fn splits(vocabulary: usize) -> usize {
    vocabulary.div_ceil(SPLIT).clamp(1, 64)
}

/// The attention kernels' size for heads of `dim` numbers, and the rows of their tiles.
fn head_size(dim: usize) -> (usize, usize) {
    match dim {
        0..=64 => (64, 32),
        65..=128 => (128, 16),
        _ => (256, 8),
    }
}

/// Dynamic shared memory of the attention kernels: forward, backward for queries and for keys, decoding.
fn shared_memory(size: usize) -> [u32; 4] {
    match size {
        64 => [29_696, 37_888, 41_984, 8_448],
        128 => [44_032, 52_224, 54_272, 16_640],
        _ => [75_776, 83_968, 84_992, 33_024],
    }
}

impl<D: Driver> Launches<D> {
    /// A card to compute in these numbers.
    pub fn new(home: Arc<Home<D>>, numerics: Numerics) -> Self {
        let kind = match numerics.numbers {
            Numbers::F32 => Kind::F32,
            Numbers::BF16 => Kind::BF16,
            Numbers::F16 => Kind::F16,
        };
        let card = Self { home, kind, tf32: numerics.tf32 };
        card.forget_peak();
        card
    }

    /// From here on the most memory is what comes.
    pub fn forget_peak(&self) {
        let mut pool = lock(&self.home.pool);
        pool.peak = pool.used;
    }

    /// The kernel of this name for the kind of numbers.
    fn of_kind(&self, name: &str) -> String {
        let kind = match self.kind {
            Kind::F32 => "f32",
            Kind::BF16 => "bf16",
            Kind::F16 => "f16",
        };
        format!("{name}_{kind}")
    }

    fn launch(&self, name: &str, threads: Threads, arguments: &[Arg]) -> Result<()> {
        if threads.grid.0 == 0 || threads.grid.1 == 0 {
            return Ok(());
        }
        self.home.driver.launch(name, threads, arguments)
    }

    /// Adds up parts `[chunks, stride]` into `y`, or onto it.
    fn add_parts(
        &self,
        y: &Words<Self>,
        parts: Arg,
        (chunks, stride): (usize, usize),
        onto: Onto,
    ) -> Result<()> {
        let keep = if onto == Onto::Itself { 1.0 } else { 0.0 };
        let threads = Threads { grid: (y.len.div_ceil(256), 1), block: (256, 1), shared: 0 };
        let arguments =
            [parts, int(chunks), Arg::Long(stride as i64), place(y), int(y.len), Arg::Float(keep)];
        self.launch("sum_parts", threads, &arguments)
    }
}

impl<D: Driver> Card for Launches<D> {
    type Memory = Memory<D>;
    type Graph = D::Recorded;

    fn kind(&self) -> Kind {
        self.kind
    }

    fn words(&self, len: usize) -> Result<Words<Self>> {
        Ok(Words { memory: Arc::new(self.home.allocate(4 * len)?), first: 0, len })
    }

    fn write(&self, to: &Words<Self>, from: &[u32]) -> Result<()> {
        assert_eq!(to.len, from.len(), "words to be written");
        if from.is_empty() { Ok(()) } else { self.home.driver.write(pointer(to), from) }
    }

    fn read(&self, from: &Words<Self>) -> Result<Vec<u32>> {
        let mut words = vec![0; from.len];
        if !words.is_empty() {
            self.home.driver.read(&mut words, pointer(from))?;
        }
        Ok(words)
    }

    fn copy(&self, to: &Words<Self>, from: &Words<Self>) -> Result<()> {
        assert_eq!(to.len, from.len, "words to be copied");
        if to.len == 0 { Ok(()) } else { self.home.driver.copy(pointer(to), pointer(from), 4 * to.len) }
    }

    fn zero(&self, words: &Words<Self>) -> Result<()> {
        if words.len == 0 { Ok(()) } else { self.home.driver.zero(pointer(words), 4 * words.len) }
    }

    fn record(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Option<D::Recorded>> {
        self.home.driver.record(work)
    }

    fn replay(&self, graph: &D::Recorded) -> Result<()> {
        self.home.driver.replay(graph)
    }

    fn trim(&self) {
        let mut pool = lock(&self.home.pool);
        // Work that was begun may still use it.
        if self.home.driver.wait().is_err() {
            return;
        }
        for (bytes, pointers) in std::mem::take(&mut pool.free) {
            for pointer in pointers {
                self.home.driver.free(pointer);
                pool.reserved -= bytes as u64;
            }
        }
    }

    fn peak(&self) -> u64 {
        lock(&self.home.pool).peak
    }

    fn embed(
        &self,
        y: &Matrix<Self>,
        prompt: Option<&Matrix<Self>>,
        table: &Words<Self>,
        ids: &Words<Self>,
        positions: Option<(&Words<Self>, &Words<Self>)>,
    ) -> Result<()> {
        let arguments = [
            place_of(prompt.map(|prompt| &prompt.words)),
            int(prompt.map_or(0, |prompt| prompt.rows)),
            place(table),
            place(ids),
            place_of(positions.map(|(table, _)| table)),
            place_of(positions.map(|(_, at)| at)),
            place(&y.words),
            int(y.rows),
            int(y.width),
        ];
        self.launch(&self.of_kind("embed"), rows(y.rows), &arguments)
    }

    fn gather(&self, y: &Matrix<Self>, x: &Matrix<Self>, rows_of: &Words<Self>) -> Result<()> {
        let arguments = [place(&x.words), place(rows_of), place(&y.words), int(y.rows), int(y.width)];
        self.launch("gather_f32", rows(y.rows), &arguments)
    }

    fn scatter(&self, y: &Matrix<Self>, x: &Matrix<Self>, rows_of: &Words<Self>) -> Result<()> {
        let arguments = [place(&x.words), place(rows_of), place(&y.words), int(x.rows), int(x.width)];
        self.launch("scatter_rows", rows(x.rows), &arguments)
    }

    fn add_groups(&self, y: &Matrix<Self>, x: &Matrix<Self>, groups: &Groups<Self>) -> Result<()> {
        let count = groups.targets.len;
        let arguments = [
            place(&x.words),
            place(&groups.order),
            place(&groups.starts),
            place(&groups.targets),
            place(&y.words),
            int(count),
            int(x.width),
        ];
        self.launch("add_grouped_rows", rows(count), &arguments)
    }

    fn start(
        &self,
        y: &Matrix<Self>,
        residual: Option<&Matrix<Self>>,
        bias: Option<&Words<Self>>,
    ) -> Result<()> {
        let residual = place_of(residual.map(|residual| &residual.words));
        let arguments = [residual, place_of(bias), place(&y.words), int(y.rows), int(y.width)];
        self.launch("fill_start", rows(y.rows), &arguments)
    }

    fn add_half(
        &self,
        y: &Matrix<Self>,
        x: &Matrix<Self>,
        bias: Option<&Words<Self>>,
        residual: &Matrix<Self>,
        mask: Option<&MaskOn<Self>>,
    ) -> Result<()> {
        let [key, threshold, scale] = mask_of(mask);
        let arguments = [
            place(&x.words),
            place_of(bias),
            place(&residual.words),
            key,
            threshold,
            scale,
            place(&y.words),
            int(y.rows),
            int(y.width),
        ];
        self.launch("add_half", rows(y.rows), &arguments)
    }

    fn drop_some(&self, y: &Matrix<Self>, x: &Matrix<Self>, mask: &MaskOn<Self>) -> Result<()> {
        let [key, threshold, scale] = mask_of(Some(mask));
        let none = Arg::At(0);
        let arguments =
            [place(&x.words), key, threshold, scale, place(&y.words), none, int(y.rows), int(y.width)];
        self.launch("dropout_f32", rows(y.rows), &arguments)
    }

    fn add(&self, y: &Words<Self>, x: &Words<Self>) -> Result<()> {
        self.launch("add", flat(y.len), &[place(x), place(y), Arg::Long(y.len as i64)])
    }

    fn round(&self, y: &Words<Self>, x: &Words<Self>) -> Result<()> {
        self.launch(&self.of_kind("cast"), flat(x.len), &[place(x), place(y), Arg::Long(x.len as i64)])
    }

    fn norm(
        &self,
        to: Normed<Self>,
        x: &Matrix<Self>,
        add: Option<(&Matrix<Self>, Option<&Words<Self>>)>,
        norm: &NormOn<Self>,
    ) -> Result<()> {
        let arguments = [
            place(&x.words),
            place_of(add.map(|(add, _)| &add.words)),
            place_of(add.and_then(|(_, bias)| bias)),
            place_of(to.sum.map(|sum| &sum.words)),
            place(&norm.weight),
            place_of(norm.bias.as_ref()),
            place_of(to.y.map(|y| &y.words)),
            place_of(to.factor.map(|factor| &factor.words)),
            place(to.stats),
            int(x.rows),
            int(x.width),
            Arg::Float(norm.eps),
        ];
        self.launch(&self.of_kind("norm_forward"), rows(x.rows), &arguments)
    }

    fn norm_back(
        &self,
        dx: &Matrix<Self>,
        x: &Matrix<Self>,
        stats: &Words<Self>,
        norm: &NormOn<Self>,
        dy: &Matrix<Self>,
        carry: Option<&Matrix<Self>>,
    ) -> Result<()> {
        let arguments = [
            place(&x.words),
            place(stats),
            place(&norm.weight),
            place(&dy.words),
            place_of(carry.map(|carry| &carry.words)),
            place(&dx.words),
            Arg::At(0),
            Arg::Int(i32::from(norm.bias.is_some())),
            int(dx.rows),
            int(dx.width),
        ];
        self.launch("norm_backward_f32", rows(dx.rows), &arguments)
    }

    fn norm_gradients(
        &self,
        weight: &Words<Self>,
        bias: Option<&Words<Self>>,
        x: &Matrix<Self>,
        stats: &Words<Self>,
        dy: &Matrix<Self>,
    ) -> Result<()> {
        let (chunks, width) = (x.rows.div_ceil(CHUNK), x.width);
        let parts = self.words(chunks * 2 * width)?;
        let threads = Threads { grid: (width.div_ceil(32), chunks), block: (32, 8), shared: 0 };
        let arguments =
            [place(&x.words), place(stats), place(&dy.words), place(&parts), int(x.rows), int(width)];
        self.launch("norm_gradients_partial", threads, &arguments)?;
        self.add_parts(weight, place(&parts), (chunks, 2 * width), Onto::Itself)?;
        match bias {
            Some(bias) => {
                let second = Arg::At(pointer(&parts) + 4 * width as u64);
                self.add_parts(bias, second, (chunks, 2 * width), Onto::Itself)
            }
            None => Ok(()),
        }
    }

    fn add_columns(&self, sums: &Words<Self>, x: &Matrix<Self>) -> Result<()> {
        let (chunks, width) = (x.rows.div_ceil(CHUNK), x.width);
        let parts = self.words(chunks * width)?;
        let threads = Threads { grid: (width.div_ceil(32), chunks), block: (32, 8), shared: 0 };
        let arguments = [place(&x.words), place(&parts), int(x.rows), int(width)];
        self.launch("column_sums_partial", threads, &arguments)?;
        self.add_parts(sums, place(&parts), (chunks, width), Onto::Itself)
    }

    fn activate(
        &self,
        y: &Factor<Self>,
        u: &Matrix<Self>,
        bias: Option<&Words<Self>>,
        activation: Activation,
    ) -> Result<()> {
        let name = match activation {
            Activation::GeluTanh => "gelu_forward",
            Activation::SwiGlu => "swiglu_forward",
        };
        let arguments =
            [place(&u.words), place_of(bias), Arg::At(0), place(&y.words), int(y.rows), int(y.width)];
        self.launch(&self.of_kind(name), rows(y.rows), &arguments)
    }

    fn activate_back(
        &self,
        du: &Factor<Self>,
        u: &Matrix<Self>,
        dy: &Matrix<Self>,
        activation: Activation,
    ) -> Result<()> {
        let name = match activation {
            Activation::GeluTanh => "gelu_backward",
            Activation::SwiGlu => "swiglu_backward",
        };
        // In f32 the factor is the matrix.
        let narrow = if self.kind == Kind::F32 { Arg::At(0) } else { place(&du.words) };
        let arguments =
            [place(&u.words), place(&dy.words), place(&u.words), narrow, int(dy.rows), int(dy.width)];
        self.launch(&self.of_kind(name), rows(dy.rows), &arguments)
    }

    fn turns(&self, turns: &Words<Self>, positions: &Words<Self>, frequencies: &Words<Self>) -> Result<()> {
        let arguments =
            [place(positions), place(frequencies), place(turns), int(positions.len), int(frequencies.len)];
        self.launch("rotary_turns", Threads { block: (64, 1), ..rows(positions.len) }, &arguments)
    }

    fn turn(
        &self,
        x: &Matrix<Self>,
        turns: &Words<Self>,
        turn_of: Option<&Words<Self>>,
        columns: Columns,
        direction: Direction,
    ) -> Result<()> {
        let sign = if direction == Direction::Forward { 1.0 } else { -1.0 };
        let arguments = [
            place(&x.words),
            place(turns),
            place_of(turn_of),
            int(x.rows),
            int(x.width),
            int(columns.first),
            int(columns.step),
            int(columns.heads),
            int(columns.dim / 2),
            Arg::Float(sign),
        ];
        self.launch("rotary", Threads { block: (128, 1), ..rows(x.rows) }, &arguments)
    }

    fn tile(&self, dim: usize) -> usize {
        head_size(dim).1
    }

    fn attend(
        &self,
        to: &Attended<Self>,
        q: &Matrix<Self>,
        kv: &Matrix<Self>,
        cache: Option<&Matrix<Self>>,
        how: &Attending<Self>,
    ) -> Result<()> {
        let Attending { attention, spans, mask } = *how;
        let (size, _) = head_size(attention.keys.dim);
        let [shared, _, _, decoding] = shared_memory(size);
        let given = [
            place(&q.words),
            place(&kv.words),
            place_of(cache.map(|cache| &cache.words)),
            place(&spans.queries),
            place(&spans.segments),
        ];
        if let (Some(query_segments), None) = (&spans.query_segments, mask) {
            let queries = spans.queries.len / 2;
            let threads = Threads { grid: (queries, attention.heads), block: (256, 1), shared: decoding };
            let arguments =
                [&given[..], &[place(query_segments), place(&to.mixed.words)], &shape_of(attention)].concat();
            return self.launch(&format!("attention_decode_{size}"), threads, &arguments);
        }
        let threads = Threads { grid: (spans.tiles.len / 2, attention.heads), block: (128, 1), shared };
        let results = [place(&spans.tiles), place(&to.mixed.words), place(&to.stats)];
        let arguments = [&given[..], &results, &shape_of(attention), &mask_of(mask)].concat();
        self.launch(&format!("attention_forward_{size}"), threads, &arguments)
    }

    fn attend_back(
        &self,
        (dq, d_kv): (&Matrix<Self>, &Matrix<Self>),
        d_mixed: &Matrix<Self>,
        attended: &Attended<Self>,
        (q, kv): (&Matrix<Self>, &Matrix<Self>),
        how: &Attending<Self>,
    ) -> Result<()> {
        let Attending { attention, spans, mask } = *how;
        let Some(back) = &spans.back else { return Ok(()) };
        let (size, _) = head_size(attention.keys.dim);
        let [_, for_queries, for_keys, _] = shared_memory(size);
        let delta = self.words(q.rows * attention.heads)?;
        let threads =
            Threads { grid: (spans.tiles.len / 2, attention.heads), block: (128, 1), shared: for_queries };
        let given = [
            place(&q.words),
            place(&kv.words),
            place(&spans.queries),
            place(&spans.segments),
            place(&spans.tiles),
            place(&attended.mixed.words),
            place(&attended.stats),
            place(&d_mixed.words),
            place(&dq.words),
            place(&delta),
        ];
        let arguments = [&given[..], &shape_of(attention), &mask_of(mask)].concat();
        self.launch(&format!("attention_backward_queries_{size}"), threads, &arguments)?;

        let prefix = back.prefix * kv.width;
        let parts = self.words(back.parts * prefix)?;
        let heads = attention.keys.heads;
        let threads = Threads { grid: (back.key_tiles.len / 6, heads), block: (128, 1), shared: for_keys };
        let given = [
            place(&q.words),
            place(&kv.words),
            place(&spans.queries),
            place(&back.key_tiles),
            place(&attended.stats),
            place(&delta),
            place(&d_mixed.words),
            place(&d_kv.words),
            place(&parts),
        ];
        let arguments = [&given[..], &shape_of(attention), &mask_of(mask)].concat();
        self.launch(&format!("attention_backward_keys_{size}"), threads, &arguments)?;
        match prefix {
            0 => Ok(()),
            _ => self.add_parts(
                &d_kv.words.part(0..prefix),
                place(&parts),
                (back.parts, prefix),
                Onto::Nothing,
            ),
        }
    }

    fn product(
        &self,
        y: &Matrix<Self>,
        x: &Factor<Self>,
        weight: &Words<Self>,
        over: Over,
        onto: Onto,
    ) -> Result<()> {
        assert_eq!((y.rows, self.kind.words(y.width * x.width)), (x.rows, weight.len), "shapes of a product");
        let (rows, columns, depth) = (y.rows, y.width, x.width);
        // Row-major matrices are cuBLAS's turned around: yᵀ = W · xᵀ.
        let (turned, stride) = match over {
            Over::Inputs => (true, depth),
            Over::Outputs => (false, columns),
        };
        self.home.driver.multiply(&Product {
            turned: [turned, false],
            sizes: (columns, rows, depth),
            a: (pointer(weight), stride),
            b: (pointer(&x.words), depth),
            c: (pointer(&y.words), columns),
            onto,
            kind: self.kind,
            tf32: self.tf32,
        })
    }

    fn add_product(&self, gradient: &Words<Self>, x: &Factor<Self>, dy: &Factor<Self>) -> Result<()> {
        assert_eq!((gradient.len, x.rows), (x.width * dy.width, dy.rows), "shapes of a gradient");
        self.home.driver.multiply(&Product {
            turned: [false, true],
            sizes: (x.width, dy.width, x.rows),
            a: (pointer(&x.words), x.width),
            b: (pointer(&dy.words), dy.width),
            c: (pointer(gradient), x.width),
            onto: Onto::Itself,
            kind: self.kind,
            tf32: self.tf32,
        })
    }

    fn judge(
        &self,
        nll: &Words<Self>,
        likeliest: &Words<Self>,
        logits: &Matrix<Self>,
        targets: &Words<Self>,
        gradient: Option<(&Factor<Self>, &Words<Self>)>,
    ) -> Result<()> {
        let (count, vocabulary) = (logits.rows, logits.width);
        let splits = splits(vocabulary);
        let parts = self.words(4 * count * splits)?;
        let (target_logits, stats) = (self.words(count)?, self.words(2 * count)?);
        let threads = Threads { grid: (splits, count), block: (256, 1), shared: 0 };
        let arguments = [
            place(&logits.words),
            place(targets),
            place(&parts),
            place(&target_logits),
            int(vocabulary),
            int(0),
            int(0),
            int(splits),
        ];
        self.launch("cross_entropy_partial", threads, &arguments)?;
        let arguments = [
            place(&parts),
            place(&target_logits),
            place(targets),
            place(nll),
            place(likeliest),
            place(&stats),
            int(count),
            int(splits),
        ];
        let few = Threads { grid: (count.div_ceil(4), 1), block: (128, 1), shared: 0 };
        self.launch("cross_entropy_judge", few, &arguments)?;
        let Some((to, scale)) = gradient else { return Ok(()) };
        let (wide, narrow) = match self.kind {
            Kind::F32 => (place(&to.words), Arg::At(0)),
            _ => (Arg::At(0), place(&to.words)),
        };
        let arguments = [
            place(&logits.words),
            place(&stats),
            place(targets),
            place(scale),
            wide,
            narrow,
            int(vocabulary),
            int(0),
        ];
        self.launch(&self.of_kind("cross_entropy_gradient"), threads, &arguments)
    }

    fn likeliest(&self, ids: &Words<Self>, logits: &Matrix<Self>) -> Result<()> {
        let (count, vocabulary) = (logits.rows, logits.width);
        let splits = splits(vocabulary);
        let parts = self.words(2 * count * splits)?;
        let threads = Threads { grid: (splits, count), block: (256, 1), shared: 0 };
        self.launch("argmax_partial", threads, &[place(&logits.words), place(&parts), int(vocabulary)])?;
        let few = Threads { grid: (count.div_ceil(4), 1), block: (128, 1), shared: 0 };
        self.launch("argmax_finish", few, &[place(&parts), place(ids), int(count), int(splits)])
    }

    fn add_loss(&self, loss: &Words<Self>, nll: &Words<Self>, scale: &Words<Self>) -> Result<()> {
        let threads = Threads { grid: (1, 1), block: (256, 1), shared: 0 };
        let arguments = [place(nll), int(nll.len / 2), place(scale), Arg::At(0), place(loss)];
        self.launch("sum_loss", threads, &arguments)
    }

    fn clip(
        &self,
        norm: &Words<Self>,
        factor: &Words<Self>,
        gradients: &[&Words<Self>],
        max: f32,
    ) -> Result<()> {
        let blocks = |gradient: &Words<Self>| gradient.len.div_ceil(4096).clamp(1, SQUARES);
        let all: usize = gradients.iter().map(|gradient| blocks(gradient)).sum();
        let parts = self.words(2 * all)?;
        let mut first = 0;
        for gradient in gradients {
            let grid = blocks(gradient);
            let threads = Threads { grid: (grid, 1), block: (256, 1), shared: 0 };
            let part = Arg::At(pointer(&parts) + 8 * first as u64);
            let arguments = [place(gradient), Arg::Long(gradient.len as i64), part];
            self.launch("square_sum_partial", threads, &arguments)?;
            first += grid;
        }
        let threads = Threads { grid: (1, 1), block: (256, 1), shared: 0 };
        let arguments = [place(&parts), int(all), Arg::Double(f64::from(max)), place(norm), place(factor)];
        self.launch("clip_scale", threads, &arguments)
    }

    fn step(&self, tensor: &TensorOn<Self>, factors: &Words<Self>, clip: &Words<Self>) -> Result<()> {
        let arguments = [
            place(&tensor.numbers),
            place(&tensor.gradient),
            place(&tensor.mean),
            place(&tensor.square),
            place(factors),
            place(clip),
            place_of(tensor.rounded.as_ref()),
            Arg::Long(tensor.numbers.len as i64),
        ];
        self.launch(&self.of_kind("adamw"), flat(tensor.numbers.len), &arguments)
    }
}
