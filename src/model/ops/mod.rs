//! The operations decoders are made of: one file each, forward and backward.
//!
//! Weights are frozen: an operation owns them and its backward gives the gradient of its input alone. Every
//! tensor is f32 with tokens in rows.

pub mod activation;
pub mod attention;
pub mod cross_entropy;
pub mod linear;
pub mod matmul;
pub mod norm;
pub mod rotary;

use candle_core::{CpuStorage, Layout, Result, Storage, Tensor};

/// The values of a tensor of f32 on the processor, rows end to end.
fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => {
            candle_core::bail!("the operation needs a contiguous tensor, strides are {:?}", layout.stride())
        }
    }
}

/// Gives `f` the values of a tensor.
pub(crate) fn with_values<R>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => Ok(f(slice(storage, layout)?)),
        _ => candle_core::bail!("the operation is there for the processor only"),
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use candle_core::{DType, Device, Tensor, Var};

    /// Numbers that look random and are the same every time, in -1..1.
    pub fn numbers(shape: &[usize], seed: u32) -> Tensor {
        let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12345);
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            (f64::from(state) / f64::from(u32::MAX) * 2.0 - 1.0) as f32
        };
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| next()).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    /// Largest difference between two tensors.
    pub fn distance(a: &Tensor, b: &Tensor) -> f64 {
        assert_eq!(a.dims(), b.dims());
        let a = a.to_dtype(DType::F64).unwrap();
        let b = b.to_dtype(DType::F64).unwrap();
        (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
    }

    /// Holds an operation in f32, value and gradient, against a formula differentiated by candle in f64.
    pub fn check(
        x: &Tensor,
        op: impl Fn(&Tensor) -> candle_core::Result<Tensor>,
        formula: impl Fn(&Tensor) -> candle_core::Result<Tensor>,
    ) {
        let fast = Var::from_tensor(x).unwrap();
        let slow = Var::from_tensor(&x.to_dtype(DType::F64).unwrap()).unwrap();
        let (y, expected) = (op(&fast).unwrap(), formula(&slow).unwrap());
        let error = distance(&y, &expected);
        assert!(error < 1e-5, "value is off by {error}");
        // A weight for each output, so that no error cancels in the sum.
        let weights = numbers(y.dims(), 99);
        let loss = (&y * &weights).unwrap().sum_all().unwrap();
        let expected = (&expected * weights.to_dtype(DType::F64).unwrap())
            .unwrap()
            .sum_all()
            .unwrap()
            .backward()
            .unwrap();
        let gradients = loss.backward().unwrap();
        let gradient = gradients.get(&fast).expect("the operation gives no gradient");
        let error = distance(gradient, expected.get(&slow).unwrap());
        assert!(error < 2e-5, "gradient is off by {error}");
    }
}
