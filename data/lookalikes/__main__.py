"""`python -m data.lookalikes`: writes a small copy of a public corpus."""

from data.lookalikes import corpora

if __name__ == "__main__":
  corpora.main()
