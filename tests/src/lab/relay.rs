//! Delay, jitter and loss of a link in user space, for kernels without netem.
