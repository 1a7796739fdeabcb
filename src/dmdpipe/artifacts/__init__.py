"""The store: the steps, where their files live, how they are written, and the manifests that vouch for them."""
