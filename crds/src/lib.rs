//! The typed API of Paddock: paddock.dev/v1alpha1.
