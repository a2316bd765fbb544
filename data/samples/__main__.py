"""`python -m data.samples`: writes the sample corpus."""

from data.samples import sample_corpus

if __name__ == "__main__":
  sample_corpus.main()
