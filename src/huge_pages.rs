//! The program's allocator: the system's, with large blocks in huge pages where the system hands them out on request.
//!
//! Weights, moments and activations are gone through from end to end in every step. In pages of 4 KiB a core spends
//! up to half of that on finding out where each page is. Knows nothing of what a block is for.

use std::alloc::{GlobalAlloc, Layout, System};

/// The system's allocator, which is told of large blocks.
pub struct HugePages;

/// Bytes from which on a block is large: it has whole huge pages of 2 MiB in it, wherever it begins.
const LARGE: usize = 4 << 20;

// SAFETY: every block comes from the system's allocator and goes back to it with the layout it came with; what is done
// beside changes no byte of it.
unsafe impl GlobalAlloc for HugePages {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are those that the system's allocator asks for; so in all the others.
        let block = unsafe { System.alloc(layout) };
        advise(block, layout.size());
        block
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: see `alloc`.
        let block = unsafe { System.alloc_zeroed(layout) };
        advise(block, layout.size());
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: see `alloc`.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: see `alloc`.
        let block = unsafe { System.realloc(block, layout, size) };
        advise(block, size);
        block
    }
}

/// Asks for a large block to be kept in huge pages. A system that has none to give says so, which is no loss.
#[cfg(target_os = "linux")]
fn advise(block: *mut u8, size: usize) {
    use std::ffi::{c_int, c_void};

    unsafe extern "C" {
        fn madvise(start: *mut c_void, len: usize, advice: c_int) -> c_int;
    }
    const MADV_HUGEPAGE: c_int = 14;
    /// A multiple of every system's pages, on one of which the range has to begin.
    const PAGE: usize = 1 << 16;
    if size < LARGE || block.is_null() {
        return;
    }
    let before = block.addr() % PAGE;
    // SAFETY: the advice changes how memory is kept and not what is in it, neither in the block nor around it.
    let _ = unsafe { madvise(block.wrapping_sub(before).cast(), size + before, MADV_HUGEPAGE) };
}

#[cfg(not(target_os = "linux"))]
fn advise(_: *mut u8, _: usize) {}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn large_blocks_are_kept_in_huge_pages() {
        let offered = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
        if !offered.is_ok_and(|offered| offered.contains("[madvise]")) {
            return println!("skipped: this system has no huge pages to ask for");
        }
        let numbers = vec![1u8; 4 * LARGE];
        let middle = numbers.as_ptr().addr() + numbers.len() / 2;
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let within = maps.lines().skip_while(|line| {
            let ends = line.split_once(' ').and_then(|(range, _)| range.split_once('-'));
            let ends = ends.map(|(start, end)| [start, end].map(|at| usize::from_str_radix(at, 16)));
            !matches!(ends, Some([Ok(start), Ok(end)]) if (start..end).contains(&middle))
        });
        let flags = within.into_iter().find(|line| line.starts_with("VmFlags:")).unwrap();
        assert!(flags.split(' ').any(|flag| flag == "hg"), "{flags}");
    }

    #[test]
    fn a_block_keeps_its_bytes_when_it_grows_and_shrinks() {
        let mut bytes: Vec<u8> = (0..LARGE + 5).map(|i| i as u8).collect();
        bytes.reserve_exact(3 * LARGE);
        bytes.truncate(LARGE / 2);
        bytes.shrink_to_fit();
        assert!(bytes.iter().enumerate().all(|(i, byte)| *byte == i as u8));
        assert!(vec![0u8; 2 * LARGE].iter().all(|byte| *byte == 0));
    }
}
