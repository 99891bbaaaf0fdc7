//! [`Utf8`]: the check of text that arrives in pieces.

/// The state of the check between two pieces: the beginning of a character that has arrived in part.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Utf8 {
    pending: [u8; 4],
    length: u8,
}

impl Utf8 {
    /// Checks the next piece. Returns false at the first byte that cannot be UTF-8.
    pub(super) fn take(&mut self, mut piece: &[u8]) -> bool {
        while self.length > 0 {
            let Some((&byte, rest)) = piece.split_first() else { return true };
            self.pending[usize::from(self.length)] = byte;
            self.length += 1;
            piece = rest;
            match std::str::from_utf8(&self.pending[..usize::from(self.length)]) {
                Ok(_) => self.length = 0,
                Err(error) if error.error_len().is_some() => return false,
                Err(_) => {}
            }
        }
        match std::str::from_utf8(piece) {
            Ok(_) => true,
            Err(error) if error.error_len().is_some() => false,
            Err(error) => {
                let rest = &piece[error.valid_up_to()..];
                self.pending[..rest.len()].copy_from_slice(rest);
                // Fewer than four bytes, since four would be a character.
                self.length = u8::try_from(rest.len()).unwrap_or_default();
                true
            }
        }
    }

    /// True when no character has arrived in part.
    pub(super) const fn is_whole(self) -> bool {
        self.length == 0
    }
}
