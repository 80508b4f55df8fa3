from pemncodec.cli.main import main

main()
