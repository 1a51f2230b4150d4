//! CUDA: cards, their memory, launches of the kernels and cuBLAS's products.
//!
//! One stream, one thread at a time: the lane of a device sees to that. The only unsafe code of the engine is here, and
//! all of it rests on the same two facts: whoever asks for something holds the memory it names until later work may
//! have it, and all work goes through the one stream, in order.

use std::collections::{BTreeMap, HashMap};
use std::ffi::c_void;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::cublas::{result as blas, sys as cublas};
use cudarc::driver::{CudaContext, CudaModule, CudaStream, DriverError, result as driver, sys};

use super::super::numerics::Numerics;
use super::card::{Kind, Onto, Result};
use super::kernels::{self, Part};
use super::launches::{Arg, Driver, Home, Launches, Product, Threads};
use super::{CardError, libraries};
use crate::device::{Card as About, NoCards};

/// cuBLAS's own memory: what its documentation asks for on cards of compute capability 9.
const WORKSPACE: usize = 32 << 20;
/// Dynamic shared memory above which a kernel has to be told.
const SHARED: u32 = 48 << 10;
/// Environment variable: at most so many bytes of a card's memory are used.
const LIMIT: &str = "PIPE_GPU_MEMORY";

/// A card by CUDA.
pub type Cuda = Launches<Open>;

/// A card that was opened.
pub struct Open {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    capability: (u32, u32),
    modules: Mutex<BTreeMap<Part, Arc<CudaModule>>>,
    functions: Mutex<HashMap<String, sys::CUfunction>>,
    blas: cublas::cublasHandle_t,
}

// SAFETY: handles of the driver and of cuBLAS are not bound to a thread; that two threads never use them at once is for
// the device's lane to see to, which runs one job at a time.
unsafe impl Send for Open {}
// SAFETY: as above.
unsafe impl Sync for Open {}

/// Work that was recorded.
pub struct Graph {
    graph: sys::CUgraph,
    executable: sys::CUgraphExec,
    stream: Arc<CudaStream>,
}

impl Drop for Graph {
    fn drop(&mut self) {
        let _ = self.stream.context().bind_to_thread();
        // SAFETY: both were made together and nobody else has them; the stream is waited for first.
        unsafe {
            let _ = driver::stream::synchronize(self.stream.cu_stream());
            let _ = driver::graph::exec_destroy(self.executable);
            let _ = driver::graph::destroy(self.graph);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn failed(what: &str) -> impl FnOnce(DriverError) -> CardError + '_ {
    move |error| CardError::Failed { what: what.into(), reason: reason(error) }
}

/// An error of the driver in its own words.
fn reason(error: DriverError) -> String {
    let text = |text: std::result::Result<&std::ffi::CStr, DriverError>| {
        text.ok().map(|text| text.to_string_lossy().into_owned())
    };
    text(error.error_string())
        .or_else(|| text(error.error_name()))
        .unwrap_or_else(|| format!("{:?}", error.0))
}

fn refused(what: &'static str) -> impl FnOnce(blas::CublasError) -> CardError {
    move |error| CardError::Failed { what: what.into(), reason: format!("{:?}", error.0) }
}

/// The cards that the driver sees, if they can be computed with.
pub fn cards() -> std::result::Result<Vec<About>, NoCards> {
    if !libraries::driver() {
        return Err(NoCards::NoDriver);
    }
    driver::init().map_err(|error| match error.0 {
        sys::CUresult::CUDA_ERROR_NO_DEVICE => NoCards::None,
        _ => NoCards::Driver(reason(error)),
    })?;
    let refused = |error| NoCards::Driver(reason(error));
    let count = driver::device::get_count().map_err(refused)?;
    if count == 0 {
        return Err(NoCards::None);
    }
    for library in ["libcublas", "libnvrtc"] {
        libraries::find(library)?;
    }
    versions_fit()?;
    let card = |number: i32| {
        let device = driver::device::get(number).map_err(refused)?;
        let attribute = |attribute| {
            // SAFETY: the device is one that the driver named.
            unsafe { driver::device::get_attribute(device, attribute) }.map_err(refused)
        };
        use sys::CUdevice_attribute_enum as Attribute;
        let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        // SAFETY: as above.
        let memory = unsafe { driver::device::total_mem(device) }.map_err(refused)?;
        Ok(About {
            number: number as usize,
            name: driver::device::get_name(device).map_err(refused)?,
            capability: (major as u32, minor as u32),
            memory: memory as u64,
            free: None,
        })
    };
    (0..count).map(card).collect()
}

/// Bytes of a card's memory that nobody uses, this program's own pool aside.
pub fn free_memory(number: usize) -> Option<u64> {
    let context = CudaContext::new(number).ok()?;
    Some(context.mem_get_info().ok()?.0 as u64)
}

/// Whether the driver is as new as the libraries.
fn versions_fit() -> std::result::Result<(), NoCards> {
    let mut known = 0;
    // SAFETY: a valid place for a number.
    let outcome = unsafe { sys::cuDriverGetVersion(&raw mut known) }.result();
    outcome.map_err(|error| NoCards::Driver(reason(error)))?;
    let (mut nvrtc, mut nvrtc_minor, mut blas, mut blas_minor) = (0, 0, 0, 0);
    // SAFETY: valid places for numbers; what a library does not say stays 0, which is older than any driver.
    unsafe {
        let _ = cudarc::nvrtc::sys::nvrtcVersion(&raw mut nvrtc, &raw mut nvrtc_minor);
        let _ = cublas::cublasGetProperty(cublas::libraryPropertyType_t::MAJOR_VERSION, &raw mut blas);
        let _ = cublas::cublasGetProperty(cublas::libraryPropertyType_t::MINOR_VERSION, &raw mut blas_minor);
    }
    let driver = format!("{}.{}", known / 1000, known % 1000 / 10);
    for (library, major, minor) in [("libnvrtc", nvrtc, nvrtc_minor), ("libcublas", blas, blas_minor)] {
        // Within a major version a driver takes what a newer library makes.
        if major > known / 1000 {
            return Err(NoCards::OldDriver { driver, library, needs: format!("{major}.{minor}") });
        }
    }
    Ok(())
}

/// What was opened of each card, for as long as the program runs.
static HOMES: Mutex<BTreeMap<usize, Arc<Home<Open>>>> = Mutex::new(BTreeMap::new());

/// The card of this number, to compute in these numbers.
///
/// # Errors
/// The driver or a library refuses.
pub fn open(number: usize, numerics: Numerics) -> Result<Cuda> {
    let mut homes = lock(&HOMES);
    let home = match homes.get(&number) {
        Some(home) => home.clone(),
        None => {
            // So that a library that is missing is an error and no panic.
            cards().map_err(|error| CardError::Failed {
                what: "opening it".into(),
                reason: error.to_string(),
            })?;
            let limit = std::env::var(LIMIT).ok().and_then(|text| text.parse().ok());
            let home = Arc::new(Home::new(Open::new(number)?, limit));
            homes.insert(number, home.clone());
            home
        }
    };
    home.driver.bind()?;
    let mode = match numerics.deterministic {
        true => cublas::cublasAtomicsMode_t::CUBLAS_ATOMICS_NOT_ALLOWED,
        false => cublas::cublasAtomicsMode_t::CUBLAS_ATOMICS_ALLOWED,
    };
    // SAFETY: the handle lives as long as the program.
    unsafe { cublas::cublasSetAtomicsMode(home.driver.blas, mode) }
        .result()
        .map_err(refused("cuBLAS's mode"))?;
    Ok(Launches::new(home, numerics))
}

impl Open {
    fn new(number: usize) -> Result<Self> {
        let context = CudaContext::new(number).map_err(failed("opening the GPU"))?;
        let stream = context.new_stream().map_err(failed("making a stream"))?;
        let (major, minor) = context.compute_capability().map_err(failed("asking for its capability"))?;
        let handle = blas::create_handle().map_err(refused("making a cuBLAS handle"))?;
        // SAFETY: both handles live as long as the home; the workspace is never given back.
        unsafe {
            blas::set_stream(handle, stream.cu_stream().cast())
                .map_err(refused("setting cuBLAS's stream"))?;
            let workspace = driver::malloc_sync(WORKSPACE).map_err(failed("cuBLAS's memory"))?;
            let pointer = workspace as *mut c_void;
            cublas::cublasSetWorkspace_v2(handle, pointer, WORKSPACE)
                .result()
                .map_err(refused("setting cuBLAS's memory"))?;
        }
        let capability = (major as u32, minor as u32);
        let (modules, functions) = (Mutex::default(), Mutex::default());
        Ok(Self { context, stream, capability, modules, functions, blas: handle })
    }

    fn bind(&self) -> Result<()> {
        self.context.bind_to_thread().map_err(failed("binding a thread"))
    }

    /// Some kernels, compiled and loaded when the first of them is needed.
    fn module(&self, part: Part) -> Result<Arc<CudaModule>> {
        let mut modules = lock(&self.modules);
        if let Some(module) = modules.get(&part) {
            return Ok(module.clone());
        }
        let code = cudarc::nvrtc::Ptx::from_binary(kernels::compiled(self.capability, part)?);
        let module = self.context.load_module(code).map_err(failed("loading the kernels"))?;
        modules.insert(part, module.clone());
        Ok(module)
    }

    fn function(&self, name: &str, shared: u32) -> Result<sys::CUfunction> {
        let mut functions = lock(&self.functions);
        if let Some(function) = functions.get(name) {
            return Ok(*function);
        }
        let what = format!("finding the kernel `{name}`");
        let function = self.module(Part::of(name))?.load_function(name).map_err(failed(&what))?.cu_function();
        if shared > SHARED {
            let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function is of a module that is never unloaded.
            unsafe { driver::function::set_function_attribute(function, attribute, shared as i32) }
                .map_err(failed(&what))?;
        }
        functions.insert(name.to_owned(), function);
        Ok(function)
    }
}

impl Driver for Open {
    type Recorded = Graph;

    fn allocate(&self, bytes: usize) -> Result<Option<u64>> {
        self.bind()?;
        // SAFETY: plain memory, which stays until it is given to `free`.
        match unsafe { driver::malloc_sync(bytes) } {
            Ok(pointer) => Ok(Some(pointer)),
            Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => Ok(None),
            Err(error) => Err(failed("allocating memory")(error)),
        }
    }

    fn free(&self, pointer: u64) {
        let _ = self.bind();
        // SAFETY: it came from `allocate`, and nobody uses it any more.
        let _ = unsafe { driver::free_sync(pointer) };
    }

    fn wait(&self) -> Result<()> {
        self.bind()?;
        // SAFETY: the stream lives.
        unsafe { driver::stream::synchronize(self.stream.cu_stream()) }.map_err(failed("waiting"))
    }

    fn write(&self, to: u64, from: &[u32]) -> Result<()> {
        self.bind()?;
        // SAFETY: as many words as there are; from pageable memory the call returns once they have been taken.
        unsafe { driver::memcpy_htod_async(to, from, self.stream.cu_stream()) }
            .map_err(failed("copying to it"))
    }

    fn read(&self, to: &mut [u32], from: u64) -> Result<()> {
        self.bind()?;
        // SAFETY: as many words as there are, and nobody looks at them before the stream is done.
        unsafe { driver::memcpy_dtoh_async(to, from, self.stream.cu_stream()) }
            .map_err(failed("copying from it"))?;
        self.wait()
    }

    fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        self.bind()?;
        // SAFETY: as many bytes as both have.
        unsafe { driver::memcpy_dtod_async(to, from, bytes, self.stream.cu_stream()) }
            .map_err(failed("copying on it"))
    }

    fn zero(&self, at: u64, bytes: usize) -> Result<()> {
        self.bind()?;
        // SAFETY: as many bytes as there are.
        unsafe { driver::memset_d8_async(at, 0, bytes, self.stream.cu_stream()) }
            .map_err(failed("clearing memory"))
    }

    fn launch(&self, kernel: &str, threads: Threads, arguments: &[Arg]) -> Result<()> {
        let Threads { grid, block, shared } = threads;
        self.bind()?;
        let function = self.function(kernel, shared)?;
        let mut values: Vec<u64> = arguments
            .iter()
            .map(|argument| match *argument {
                Arg::At(place) => place,
                Arg::Int(number) => u64::from(number as u32),
                Arg::Long(number) => number as u64,
                Arg::Unsigned(number) => u64::from(number),
                Arg::Float(number) => u64::from(number.to_bits()),
                Arg::Double(number) => number.to_bits(),
            })
            .collect();
        let mut places: Vec<*mut c_void> =
            values.iter_mut().map(|value| std::ptr::from_mut(value).cast::<c_void>()).collect();
        // SAFETY: each argument is as large as the kernel's or a larger little-endian number that begins with it; the
        // memory they point to is held until later work may have it.
        unsafe {
            driver::launch_kernel(
                function,
                (grid.0 as u32, grid.1 as u32, 1),
                (block.0, block.1, 1),
                shared,
                self.stream.cu_stream(),
                &mut places,
            )
        }
        .map_err(failed(kernel))
    }

    fn multiply(&self, product: &Product) -> Result<()> {
        let Product { turned, sizes: (m, n, k), a, b, c, onto, kind, tf32 } = *product;
        if m == 0 || n == 0 {
            return Ok(());
        }
        self.bind()?;
        let operation = |turned| match turned {
            true => cublas::cublasOperation_t::CUBLAS_OP_T,
            false => cublas::cublasOperation_t::CUBLAS_OP_N,
        };
        let of_factors = match kind {
            Kind::F32 => cublas::cudaDataType_t::CUDA_R_32F,
            Kind::BF16 => cublas::cudaDataType_t::CUDA_R_16BF,
            Kind::F16 => cublas::cudaDataType_t::CUDA_R_16F,
        };
        let compute = match (kind, tf32) {
            (Kind::F32, true) => cublas::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32,
            _ => cublas::cublasComputeType_t::CUBLAS_COMPUTE_32F,
        };
        let (alpha, beta) = (1.0f32, if onto == Onto::Itself { 1.0f32 } else { 0.0 });
        // SAFETY: the matrices have these sizes, and lie in memory that is held.
        unsafe {
            blas::gemm_ex(
                self.blas,
                operation(turned[0]),
                operation(turned[1]),
                m as i32,
                n as i32,
                k as i32,
                std::ptr::from_ref(&alpha).cast(),
                a.0 as *const c_void,
                of_factors,
                a.1 as i32,
                b.0 as *const c_void,
                of_factors,
                b.1 as i32,
                std::ptr::from_ref(&beta).cast(),
                c.0 as *mut c_void,
                cublas::cudaDataType_t::CUDA_R_32F,
                c.1 as i32,
                compute,
                cublas::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        }
        .map_err(refused("a matrix product"))
    }

    fn record(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Option<Graph>> {
        self.bind()?;
        // Memory may still have to be fetched while work is recorded, which the other modes forbid.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream is used by one thread at a time; what is begun is ended below.
        unsafe { driver::stream::begin_capture(self.stream.cu_stream(), mode) }
            .map_err(failed("recording"))?;
        let outcome = work();
        // SAFETY: as above.
        let graph = unsafe { driver::stream::end_capture(self.stream.cu_stream()) };
        outcome?;
        let graph = graph.map_err(failed("recording"))?;
        if graph.is_null() {
            return Ok(None);
        }
        // SAFETY: the graph was made above.
        match unsafe { driver::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0)) } {
            Ok(executable) => Ok(Some(Graph { graph, executable, stream: self.stream.clone() })),
            Err(error) => {
                // SAFETY: nobody else has it.
                let _ = unsafe { driver::graph::destroy(graph) };
                Err(failed("making a graph")(error))
            }
        }
    }

    fn replay(&self, graph: &Graph) -> Result<()> {
        self.bind()?;
        // SAFETY: the graph lives, and so does all memory it was recorded with: graphs are let go before memory is given
        // back.
        unsafe { driver::graph::launch(graph.executable, self.stream.cu_stream()) }.map_err(failed("a graph"))
    }
}
