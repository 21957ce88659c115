"""Where repositories come from: one provider for each prefix of BinderHub's `/build/<provider>/<spec>`."""
