//! What the vCPU does: 32-bit protected mode, flat, nothing else.
//!
//! | register | holds |
//! |---|---|
//! | EBX | the ring of 256 entries |
//! | EBP | PROD, with its wrap bit |
//! | ESI | where PROD is |
//! | EDX | what is written after PROD: an ioeventfd's address, or a word of RAM that nobody reads |
//! | EDI | the word that CMD_SYNC's MSI goes to |
//! | ECX | how many invalidations |

/// The port that says that all are done.
pub const DONE: u16 = 0x10;

/// Writes a TLBI_NH_VA and a CMD_SYNC, rings, waits for the MSI; ECX times; then writes to the port, and begins again.
#[rustfmt::skip]
pub const CODE: &[u8] = &[
    0x89, 0xe8,                               // start: mov eax, ebp
    0x25, 0xff, 0x00, 0x00, 0x00,             //        and eax, 255
    0xc1, 0xe0, 0x04,                         //        shl eax, 4
    0x01, 0xd8,                               //        add eax, ebx         ; the slot
    0xc7, 0x00, 0x12, 0x00, 0x00, 0x00,       //        mov dword [eax], 0x12           ; TLBI_NH_VA
    0xc7, 0x40, 0x04, 0x00, 0x00, 0x05, 0x00, //        mov dword [eax + 4], 5 << 16    ; ASID
    0xc7, 0x40, 0x08, 0x01, 0x10, 0x00, 0x00, //        mov dword [eax + 8], 0x1001     ; Leaf, address
    0xc7, 0x40, 0x0c, 0x00, 0x00, 0x00, 0x00, //        mov dword [eax + 12], 0
    0x83, 0xc5, 0x02,                         //        add ebp, 2
    0x81, 0xe5, 0xff, 0x01, 0x00, 0x00,       //        and ebp, 511
    0xc7, 0x40, 0x10, 0x46, 0x10, 0x00, 0x00, //        mov dword [eax + 16], 0x1046    ; CMD_SYNC, CS=SIG_IRQ
    0x89, 0x68, 0x14,                         //        mov [eax + 20], ebp             ; MSIData
    0x89, 0x78, 0x18,                         //        mov [eax + 24], edi             ; MSIAddress
    0xc7, 0x40, 0x1c, 0x00, 0x00, 0x00, 0x00, //        mov dword [eax + 28], 0
    0x89, 0xe8,                               //        mov eax, ebp
    0x0d, 0x00, 0x00, 0x00, 0x80,             //        or eax, 0x80000000              ; EN
    0x89, 0x06,                               //        mov [esi], eax                  ; the doorbell
    0x89, 0x02,                               //        mov [edx], eax
    0xf3, 0x90,                               // wait:  pause
    0x39, 0x2f,                               //        cmp [edi], ebp
    0x75, 0xfa,                               //        jne wait
    0x49,                                     //        dec ecx
    0x75, 0xa8,                               //        jnz start
    0xe6, 0x10,                               //        out 0x10, al
    0xeb, 0xa4,                               //        jmp start
];
