use std::io::{ErrorKind, Read};

use zeroize::Zeroizing;

use super::KeyFileErrorKind;

/// Reads to the end, at most `max` bytes. `expected` is the likely length; a FIFO has the length 0.
pub(super) fn read(
    file: &mut impl Read,
    expected: u64,
    max: u64,
) -> Result<Zeroizing<Vec<u8>>, KeyFileErrorKind> {
    const MIN_BUFFER: u64 = 4096;
    let too_large = || KeyFileErrorKind::TooLarge { max };
    if expected > max {
        return Err(too_large());
    }
    let max_buffer = usize::try_from(max.saturating_add(1)).unwrap_or(usize::MAX);
    // One more byte than expected, for the read that finds the end.
    let len =
        usize::try_from(expected.saturating_add(1).max(MIN_BUFFER)).unwrap_or(usize::MAX).min(max_buffer);
    let mut buffer = Zeroizing::new(vec![0; len]);
    let mut filled = 0;
    loop {
        if filled == buffer.len() {
            if filled == max_buffer {
                return Err(too_large());
            }
            // `Vec` would leave a copy of the keys in memory when it grows.
            let mut larger = Zeroizing::new(vec![0; filled.saturating_mul(2).min(max_buffer)]);
            larger[..filled].copy_from_slice(&buffer);
            buffer = larger;
        }
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(KeyFileErrorKind::Io(error)),
        }
    }
    buffer.truncate(filled);
    Ok(buffer)
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn reads_all_whatever_length_is_expected() {
        let content: Vec<u8> = (0..20_000u32).map(|n| n.to_le_bytes()[0]).collect();
        for expected in [0, 1, 4095, 4096, 19_999, 20_000, 20_001, 30_000] {
            assert_eq!(*read(&mut &content[..], expected, 30_000).unwrap(), content, "{expected}");
        }
        assert!(read(&mut io::empty(), 0, 0).unwrap().is_empty());
    }

    #[test]
    fn size_is_limited_before_and_while_reading() {
        struct Unread;
        impl Read for Unread {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                panic!("the file is not read");
            }
        }
        let error = read(&mut Unread, 101, 100).unwrap_err();
        assert!(matches!(error, KeyFileErrorKind::TooLarge { max: 100 }), "{error:?}");
        for expected in [0, 50, 100] {
            let error = read(&mut io::repeat(b'x'), expected, 100).unwrap_err();
            assert!(matches!(error, KeyFileErrorKind::TooLarge { max: 100 }), "{error:?}");
            assert_eq!(read(&mut io::repeat(b'x').take(100), expected, 100).unwrap().len(), 100);
        }
        let error = read(&mut io::repeat(b'x'), 0, 10_000).unwrap_err();
        assert!(matches!(error, KeyFileErrorKind::TooLarge { max: 10_000 }), "{error:?}");
    }

    #[test]
    fn interrupted_reads_are_repeated_and_other_errors_returned() {
        struct Errors(Vec<ErrorKind>);
        impl Read for Errors {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                self.0.pop().map_or(Ok(0), |kind| Err(kind.into()))
            }
        }
        assert!(read(&mut Errors(vec![ErrorKind::Interrupted; 2]), 0, 9).unwrap().is_empty());
        let error = read(&mut Errors(vec![ErrorKind::NotFound, ErrorKind::Interrupted]), 0, 9).unwrap_err();
        assert!(matches!(error, KeyFileErrorKind::Io(error) if error.kind() == ErrorKind::NotFound));
    }

    /// Reads the memory of the buffers that were given back when they were too small.
    #[cfg(target_os = "linux")]
    #[test]
    fn growth_leaves_no_copy() {
        use std::fs::File;
        use std::os::unix::fs::FileExt as _;

        const PATTERN: u8 = 0xa7;

        /// Fills each buffer that it is asked to fill, and remembers where the buffers are.
        #[derive(Default)]
        struct Filling {
            buffers: Vec<(usize, usize)>,
            // Prevents that a buffer grows in place.
            obstacles: Vec<Box<[u8]>>,
        }
        impl Read for Filling {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                if self.buffers.len() == 4 {
                    return Ok(0);
                }
                buffer.fill(PATTERN);
                self.buffers.push((buffer.as_ptr().addr(), buffer.len()));
                self.obstacles.push(vec![1; 64].into());
                Ok(buffer.len())
            }
        }
        let memory = File::open("/proc/self/mem").unwrap();
        // Allocated before the buffers, since it would otherwise take the memory of one that was freed.
        let mut scratch = vec![0; 1 << 16];
        let mut pattern_at = |address: usize, len: usize| {
            let scratch = &mut scratch[..len];
            scratch.fill(0);
            // An error means that the allocator has returned the memory to the system.
            let _ = memory.read_exact_at(scratch, address as u64);
            scratch.iter().map(|&byte| usize::from(byte == PATTERN)).sum::<usize>()
        };

        let mut filling = Filling::default();
        let content = read(&mut filling, 0, 1 << 20).unwrap();
        let (address, len) = (content.as_ptr().addr(), content.len());
        assert_eq!(len, 4096 * 8);
        assert_eq!(pattern_at(address, len), len, "control: the buffer in use is found");
        for &(address, len) in &filling.buffers {
            assert_eq!(pattern_at(address, len), 0);
        }
        drop(content);
        assert_eq!(pattern_at(address, len), 0);
    }
}
